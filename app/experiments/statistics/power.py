"""What an experiment can find: the least effect, the users it takes, and the days until they have come.

All of it by the normal distribution from the standard error that a comparison has now, CUPED and winsorising included,
for one look at the end; an interval that holds at every look takes about twice as many users to exclude 0 by then.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import ndtri

from app.experiments.statistics.comparison import Comparison
from app.experiments.statistics.outcomes import NoComparison


class Waiting(NamedTuple):
    """Users who have come and are in no figure yet, for their window is not over.

    users: of both variants together; days: until the last of their windows is over; window_days: how long one is
    """

    users: int
    days: float
    window_days: float


def minimum_detectable_effect(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The difference, in the metric's own unit, that as many users find with this power. Raises NoComparison."""
    return _standard_errors(alpha, power) * _error(comparison)


def users_needed(comparison: Comparison, effect: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Users of both variants together, split as they are now, to find a difference of `effect`.

    None where they are more than a number can say, for an effect next to nothing.
    A user is taken to vary as much as those so far do; where totals still grow, users vary more later on.
    """
    if effect == 0.0 or not math.isfinite(effect):
        raise ValueError(f"no number of users finds a difference of {effect}")
    ratio = minimum_detectable_effect(comparison, alpha=alpha, power=power) / abs(effect)
    needed = (comparison.users_control + comparison.users_variant) * ratio * ratio
    return math.ceil(needed) if math.isfinite(needed) else None


def days_left(
    comparison: Comparison,
    effect: float,
    users_per_day: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    waiting: Waiting | None = None,
) -> float | None:
    """Days until enough users are in the figures, 0 where they are; None where nobody new comes, or never so many.

    users_per_day: new ones, of both variants together.
    """
    needed = users_needed(comparison, effect, alpha=alpha, power=power)
    if needed is None:
        return None
    missing = needed - comparison.users_control - comparison.users_variant
    if missing <= 0:
        return 0.0
    users, days, window_days = waiting or Waiting(0, 0.0, 0.0)
    if missing <= users:
        return days
    if users_per_day <= 0.0:
        return None
    left = (missing - users) / users_per_day + window_days
    return left if math.isfinite(left) else None


def _standard_errors(alpha: float, power: float) -> float:
    if not 0.0 < alpha < 1.0 or not 0.0 < power < 1.0:
        raise ValueError(f"alpha {alpha} and power {power} must lie between 0 and 1")
    return float(ndtri(1.0 - alpha / 2.0) + ndtri(power))


def _error(comparison: Comparison) -> float:
    if comparison.standard_error == 0.0:
        raise NoComparison("no user differs from another yet, so nothing says how many are needed")
    return comparison.standard_error
