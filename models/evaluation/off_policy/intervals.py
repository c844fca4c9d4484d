"""How sure a mean is: intervals and p-values over decisions of which those of one user belong together.

The sum of each user's deviations is what is independent (Liang and Zeger 1986). Importance weights are skewed, and with
them the error of a mean: Student's t alone would miss on one side. So the t statistic is made symmetric first, by the
cubic transformation of P. Hall, "On the removal of skewness by transformation" (1992).
benchmarks/off_policy_coverage.py measures how often the intervals hold the truth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Interval(NamedTuple):
    """A mean, its standard error, and where the truth is with the asked confidence."""

    mean: float
    standard_error: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class _Spread(NamedTuple):
    users: int
    standard_error: float
    skewness: float


def interval_of(values: Floats, users: Ints, *, level: float = 0.95) -> Interval:
    """The mean of values [n] over decisions, users [n] being what is independent. Of one user: without bounds."""
    mean = float(values.mean())
    spread = _spread(values - mean, users)
    if spread.users < 2:
        return Interval(mean, float("nan"), float("-inf"), float("inf"))
    quantile = float(stdtrit(spread.users - 1, 0.5 + level / 2))
    low, high = (mean - spread.standard_error * _unskewed(each, spread) for each in (quantile, -quantile))
    return Interval(mean, spread.standard_error, low, high)


def p_value(values: Floats, users: Ints, expected: float) -> float:
    """Two-sided, of the values' mean being as expected; 1 where every value is as expected."""
    deviation = float(values.mean()) - expected
    spread = _spread(values - values.mean(), users)
    if spread.users < 2 or spread.standard_error <= 1e-12 * max(1.0, abs(expected)):
        return float(abs(deviation) <= 1e-9 * max(1.0, abs(expected)))
    symmetric = _skewed(deviation / spread.standard_error, spread)
    return float(2 * stdtr(spread.users - 1, -abs(symmetric)))


def difference_of(first: Interval, second: Interval, *, level: float = 0.95) -> Interval:
    """Between means from two independent logs, with the errors of both; normal, for both logs are large."""
    mean = first.mean - second.mean
    error = float(np.hypot(first.standard_error, second.standard_error))
    reach = float(ndtri(0.5 + level / 2)) * error
    return Interval(mean, error, mean - reach, mean + reach)


def _spread(deviations: Floats, users: Ints) -> _Spread:
    _, cluster = np.unique(users, return_inverse=True)
    sums = np.bincount(cluster, deviations)
    count = len(sums)
    if count < 2:
        return _Spread(count, float("nan"), 0.0)
    variance = float(sums @ sums) / (count - 1)
    error = float(np.sqrt(variance * count)) / len(deviations)
    skewness = float(np.mean(sums**3)) / variance**1.5 if variance > 0 else 0.0
    return _Spread(count, error, skewness)


def _skewed(statistic: float, spread: _Spread) -> float:
    """Hall's transformation of a t statistic: (t, skewed) → symmetric."""
    a, n = spread.skewness, spread.users
    w = statistic / np.sqrt(n)
    return float(np.sqrt(n) * (w + a * w**2 / 3 + a**2 * w**3 / 27 + a / (6 * n)))


def _unskewed(quantile: float, spread: _Spread) -> float:
    """Its inverse: symmetric → t."""
    a, n = spread.skewness, spread.users
    y = quantile / np.sqrt(n) - a / (6 * n)
    if abs(a) < 1e-8:
        return float(np.sqrt(n) * y)
    return float(np.sqrt(n) * 3 / a * (np.cbrt(1 + a * y) - 1))
