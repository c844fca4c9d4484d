"""Sample ratio: whether the variants got the users that their weights promise. Where not, no result can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc
from scipy.stats import binomtest

THRESHOLD = 0.001
"""Low, since the check is made on every look at every experiment, and what it says stops the reader."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether counts fit weights. p_value: of a chi-square test, or an exact one where few users are expected."""

    p_value: float
    is_mismatch: bool
    threshold: float = THRESHOLD


def sample_ratio(counts: Sequence[int], weights: Sequence[float]) -> SampleRatio:
    """counts: users of each variant; weights: their planned shares, in the same order, of any sum."""
    p_value = _p_value(np.asarray(counts, dtype=np.float64), np.asarray(weights, dtype=np.float64))
    return SampleRatio(p_value, p_value < THRESHOLD)


def _p_value(counts: np.ndarray, weights: np.ndarray) -> float:
    if counts.shape != weights.shape or counts.min() < 0 or weights.min() < 0 or not weights.sum() > 0:
        raise ValueError(f"counts {counts.tolist()} and weights {weights.tolist()} don't fit")
    planned = weights > 0.0
    if counts[~planned].any():
        return 0.0  # nobody was to be there
    counts, shares = counts[planned], weights[planned] / weights.sum()
    expected = counts.sum() * shares
    if len(counts) < 2 or counts.sum() == 0:
        return 1.0
    if expected.min() < 5.0:
        return _exact(counts, shares)
    return float(chdtrc(len(counts) - 1, np.sum((counts - expected) ** 2 / expected)))


def _exact(counts: np.ndarray, shares: np.ndarray) -> float:
    """Each variant's binomial test, the smallest p-value times their number: chi-square misjudges few users."""
    total = int(counts.sum())
    tests = [binomtest(int(count), total, share).pvalue for count, share in zip(counts, shares, strict=True)]
    number = 1 if len(tests) == 2 else len(tests)  # of two variants one count says it all
    return min(1.0, number * float(min(tests)))
