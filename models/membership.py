"""Which of some numbers are among others, for lists of a session's size.

`np.isin` finds out first how to look, which takes longer than looking: a tenth of a millisecond for thirty numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contracts import Mask


def is_among(numbers: NDArray[np.integer[Any]], few: NDArray[np.integer[Any]]) -> Mask:
    """bool[n]: which of the numbers are among the few, by halving. Neither has to be in order."""
    if len(few) == 0:
        return np.zeros(len(numbers), np.bool_)
    few = np.sort(few)
    places = np.minimum(few.searchsorted(numbers), len(few) - 1)
    found: Mask = few.take(places) == numbers
    return found
