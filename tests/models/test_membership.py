"""Which numbers are among others: as numpy says it, whatever their order."""

import numpy as np

from models.membership import is_among
from models.retrieval.next_track.answers import in_order


def test_it_says_what_isin_says() -> None:
    rng = np.random.default_rng(0)
    for n, k in ((0, 3), (5, 0), (40, 1), (300, 60)):
        numbers, few = rng.integers(0, 100, n).astype(np.int32), rng.integers(-5, 100, k).astype(np.int32)
        assert is_among(numbers, few).tolist() == np.isin(numbers, few).tolist()


def test_values_are_put_in_order_and_equal_ones_stay_as_they_stood() -> None:
    values = np.random.default_rng(1).integers(-3, 40, 500).astype(np.int32)
    ascending, order = in_order(values)
    assert order.tolist() == np.argsort(values, kind="stable").tolist()
    assert ascending.tolist() == values[order].tolist()
