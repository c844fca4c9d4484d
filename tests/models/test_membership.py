"""Which numbers are among others: as numpy says it, whatever their order."""

import numpy as np

from models.membership import is_among


def test_it_says_what_isin_says() -> None:
    rng = np.random.default_rng(0)
    for n, k in ((0, 3), (5, 0), (40, 1), (300, 60)):
        numbers, few = rng.integers(0, 100, n).astype(np.int32), rng.integers(-5, 100, k).astype(np.int32)
        assert is_among(numbers, few).tolist() == np.isin(numbers, few).tolist()
