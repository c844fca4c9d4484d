"""What a list gains by where it has the item that was chosen: the terms of NDCG (Järvelin and Kekäläinen, 2002)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CUT_OFF = 10


def gains_at(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64, shaped as `ranks`, which count from 0: 1 / log2(rank + 2), and nothing from the tenth place on.

    Where one item is right, the mean of them is NDCG@10.
    """
    return np.where(ranks < CUT_OFF, 1 / np.log2(np.maximum(ranks, 0) + 2), 0.0)
