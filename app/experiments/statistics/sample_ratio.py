"""Sample ratio: whether the variants got the users that their weights promise. Where not, no result can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, bdtrc, chdtrc

from app.experiments.statistics.multiple import adjusted

THRESHOLD = 0.001
"""Low, since the check is made on every look at every experiment, and what it says stops the reader."""

SMALL_STRATUM = 30
"""Users below which a stratum joins the other small ones: alone it could hardly ever be found out."""
SMALL = "(small)"


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


@dataclass(frozen=True, slots=True)
class StratifiedSampleRatio:
    """Sample ratios by day, route or worker.

    p_values:   of each stratum, adjusted by Holm over the strata; small strata are one, called SMALL
    mismatched: the strata whose adjusted p-value is below the threshold, the worst first
    """

    p_values: Mapping[str, float]
    mismatched: tuple[str, ...]
    threshold: float = THRESHOLD


def sample_ratio_by(counts: Mapping[str, Sequence[int]], weights: Sequence[float]) -> StratifiedSampleRatio:
    """counts: per stratum, users of each variant. Finds one bad worker, or a bad day, that all others hide.

    However many strata there are, a sound experiment is suspected with a chance of the threshold at most. Strata too
    small for a test of their own (fewer than SMALL_STRATUM users) are added up and tested as one.
    """
    tested: dict[str, np.ndarray] = {}
    for name, stratum in counts.items():
        users = np.asarray(stratum)
        key = SMALL if users.sum() < SMALL_STRATUM else name
        tested[key] = tested.get(key, 0) + users
    raw = [_p_value(users.astype(np.float64), np.asarray(weights, dtype=np.float64)) for users in tested.values()]
    p_values = dict(zip(tested, adjusted(raw, "holm"), strict=True))
    mismatched = sorted((name for name in p_values if p_values[name] < THRESHOLD), key=p_values.__getitem__)
    return StratifiedSampleRatio(p_values, tuple(mismatched))


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
    """Twice the smallest of all variants' binomial tails, times their number: chi-square misjudges few users."""
    total = int(counts.sum())
    at_most = bdtr(counts, total, shares)
    at_least = np.where(counts > 0, bdtrc(counts - 1, total, shares), 1.0)
    number = 1 if len(counts) == 2 else len(counts)  # of two variants one count says it all
    return min(1.0, 2.0 * number * float(np.minimum(at_most, at_least).min()))
