"""A variant against the control: difference, relative lift, intervals and p-values of one metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from app.experiments.statistics import sequential
from app.experiments.statistics.estimates import Estimate, estimated
from app.experiments.statistics.outcomes import Outcomes
from app.experiments.statistics.winsor import winsorised

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one metric says of variant against control; None stands for what the data can't tell, never nan.

    mean_*:            as observed, after winsorising
    difference:        variant minus control, adjusted where `cuped`; so it may differ from that of the means
    interval, p_value: valid at one look, planned beforehand (Welch); None where nothing varies
    relative_lift:     difference / control's adjusted mean; None unless that mean is above 0
    relative_interval: Fieller's; it excludes 0 exactly where `interval` does. None where the control's mean is not
                       clear of 0: any lift is possible then
    sequential_*:      valid at every look, and of those users alone whose window has closed; None below 50 of them
                       in a variant
    variance_reduction: share of the difference's variance that CUPED took away
    """

    users_control: int
    users_variant: int
    mean_control: float
    mean_variant: float
    difference: float
    standard_error: float
    interval: Interval | None
    relative_lift: float | None
    relative_interval: Interval | None
    p_value: float | None
    sequential_users: int
    sequential_difference: float | None
    sequential_interval: Interval | None
    sequential_relative_interval: Interval | None
    sequential_p_value: float | None
    variance_reduction: float
    cuped: bool


@dataclass(frozen=True, slots=True)
class _Judged:
    interval: Interval | None = None
    relative_interval: Interval | None = None
    p_value: float | None = None


def compare(
    control: Outcomes,
    variant: Outcomes,
    *,
    alpha: float = 0.05,
    winsor: float | None = None,
    cuped: bool = True,
    planned_users: float = sequential.PLANNED_USERS,
) -> Comparison:
    """Compares the variant's outcomes with the control's.

    alpha:  of two-sided tests and intervals
    winsor: quantile of the positive values, pooled over both variants, at which larger ones are cut; None cuts nothing
    cuped:  adjusts by what users did before, where that is known
    planned_users: of both variants together, chosen before the first look; the sequential interval is tightest there
    Raises NoComparison where a variant has fewer than two users or a ratio nothing to divide by.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}, not between 0 and 1")
    if (control.denominator is None) != (variant.denominator is None):
        raise ValueError("a mean can't be compared with a ratio: one of two variants has a denominator")
    now = estimated(*winsorised(control, variant, winsor), cuped=cuped)
    fixed = _at_one_look(now, alpha)
    settled = _settled(control, variant, now, winsor=winsor, cuped=cuped)
    always = _at_every_look(settled, alpha, planned_users) if settled else _Judged()
    return Comparison(
        *now.users,
        *now.observed,
        difference=now.difference,
        standard_error=now.standard_error,
        interval=fixed.interval,
        relative_lift=now.difference / now.means[0] if now.means[0] > 0.0 else None,
        relative_interval=fixed.relative_interval,
        p_value=fixed.p_value,
        sequential_users=sum(settled.users) if settled else 0,
        sequential_difference=settled.difference if settled else None,
        sequential_interval=always.interval,
        sequential_relative_interval=always.relative_interval,
        sequential_p_value=always.p_value,
        variance_reduction=now.variance_reduction,
        cuped=now.is_adjusted,
    )


def _at_one_look(estimate: Estimate, alpha: float) -> _Judged:
    if estimate.standard_error == 0.0:
        return _Judged()
    freedom = estimate.degrees_of_freedom
    z = estimate.difference / estimate.standard_error
    return _judged(estimate, -float(stdtrit(freedom, alpha / 2)), 2.0 * float(stdtr(freedom, -abs(z))))


def _at_every_look(estimate: Estimate, alpha: float, planned_users: float) -> _Judged:
    if estimate.standard_error == 0.0:
        return _Judged()
    users = sum(estimate.users)
    z = estimate.difference / estimate.standard_error
    allowed = sequential.critical_value(users, alpha=alpha, planned_users=planned_users)
    return _judged(estimate, allowed, sequential.p_value(z, users, alpha=alpha, planned_users=planned_users))


def _settled(
    control: Outcomes, variant: Outcomes, now: Estimate, *, winsor: float | None, cuped: bool
) -> Estimate | None:
    """The same estimate from those users alone whose numbers are final."""
    if control.is_complete is None or variant.is_complete is None:
        return None
    if min(control.is_complete.sum(), variant.is_complete.sum()) < sequential.MINIMUM_USERS:
        return None
    if control.is_complete.all() and variant.is_complete.all():
        return now
    return estimated(*winsorised(control.complete(), variant.complete(), winsor), cuped=cuped)


def _judged(estimate: Estimate, allowed: float, p_value: float) -> _Judged:
    margin = allowed * estimate.standard_error
    interval = estimate.difference - margin, estimate.difference + margin
    return _Judged(interval, fieller(estimate, allowed), p_value)


def fieller(estimate: Estimate, allowed: float) -> Interval | None:
    """All relative lifts that a test of the variant's mean against (1 + lift) times the control's would not refuse.

    allowed: standard errors on either side. None where that set is not one bounded interval. (E. C. Fieller, "Some
    Problems in Interval Estimation", JRSS B 1954. The delta method's interval can disagree with the p-value and
    pretends to know more where the control's mean is near 0.)
    """
    control, variant = estimate.means
    var_control, var_variant = (variance + estimate.shared for variance in estimate.variances)
    square = allowed**2
    leading = control**2 - square * var_control
    if control <= 0.0 or leading <= 0.0:
        return None
    middle = control * variant - square * estimate.shared
    last = variant**2 - square * var_variant
    root = math.sqrt(max(middle**2 - leading * last, 0.0))
    return (middle - root) / leading - 1.0, (middle + root) / leading - 1.0
