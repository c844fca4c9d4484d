"""What an experiment can find: the least effect, the users it takes, and the days until they have come.

All of it by the normal distribution from the standard error that a comparison has now, CUPED and winsorising included,
for one look at the end; an interval that holds at every look takes about twice as many users to exclude 0 by then.
"""

from __future__ import annotations

import math

from scipy.special import ndtri

from app.experiments.statistics.comparison import Comparison
from app.experiments.statistics.outcomes import NoComparison


def minimum_detectable_effect(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The difference, in the metric's own unit, that as many users find with this power. Raises NoComparison."""
    return _standard_errors(alpha, power) * _error(comparison)


def users_needed(comparison: Comparison, effect: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Users of both variants together, split as they are now, to find a difference of `effect`.

    A user is taken to vary as much as those so far do; where totals still grow, users vary more later on.
    """
    if effect == 0.0 or not math.isfinite(effect):
        raise ValueError(f"no number of users finds a difference of {effect}")
    ratio = minimum_detectable_effect(comparison, alpha=alpha, power=power) / abs(effect)
    return math.ceil((comparison.users_control + comparison.users_variant) * ratio**2)


def days_left(
    comparison: Comparison, effect: float, users_per_day: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Days until enough users have come, 0 where they have; None where nobody new comes.

    users_per_day: new ones, of both variants together.
    """
    missing = users_needed(comparison, effect, alpha=alpha, power=power)
    missing -= comparison.users_control + comparison.users_variant
    if missing <= 0:
        return 0.0
    return missing / users_per_day if users_per_day > 0.0 else None


def _standard_errors(alpha: float, power: float) -> float:
    if not 0.0 < alpha < 1.0 or not 0.0 < power < 1.0:
        raise ValueError(f"alpha {alpha} and power {power} must lie between 0 and 1")
    return float(ndtri(1.0 - alpha / 2.0) + ndtri(power))


def _error(comparison: Comparison) -> float:
    if comparison.standard_error == 0.0:
        raise NoComparison("no user differs from another yet, so nothing says how many are needed")
    return comparison.standard_error
