"""The terms of NDCG, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.gains import gains_at


def test_the_first_place_gains_most_and_the_eleventh_nothing() -> None:
    found = gains_at(np.array([[0, 1, 2], [9, 10, 5_000]]))
    assert found[0].tolist() == pytest.approx([1, 0.6309, 0.5], abs=1e-4)
    assert found[1].tolist() == pytest.approx([0.2891, 0, 0], abs=1e-4)
