"""Every estimate that a log of lists allows, each beside its checks, with what was refused and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation.off_policy import single, slates
from models.evaluation.off_policy.checks import (
    ALARM,
    LARGEST_UNSEEN,
    ChiSquare,
    MeanWeight,
    effective_size,
    mean_weight,
    shown_as_logged,
)
from models.evaluation.off_policy.intervals import Interval, interval_of
from models.evaluation.off_policy.log import MissingSupport, SlateLog, WrongLog
from models.evaluation.off_policy.methods import Method, Weighed

FEWEST_EFFECTIVE = 100
"""Decisions that an estimate must be worth: with fewer, intervals miss too often (docs/decisions/0019)."""
FEWEST_USERS = 30

SINGLE = (single.ips, single.snips, single.dm, single.dr)
SLATES: tuple[Callable[[SlateLog], Weighed], ...] = (
    slates.sips,
    slates.sips_self_normalised,
    slates.iips,
    slates.iips_self_normalised,
    slates.rips,
    slates.rips_self_normalised,
    slates.cascade_dr,
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the target policy would have earned, by one method.

    value:          the mean, its error and its interval
    difference:     to what was earned, on the same log: the two errors go together
    effective_size: decisions that it is worth
    mean_weight:    None where nothing was weighted by propensities
    refusal:        why it must not be believed; None: it may
    """

    method: Method
    value: Interval
    difference: Interval
    effective_size: float
    mean_weight: MeanWeight | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """first: of the first drawn place; lists: of all places together. Rewards are per list."""

    lists: int
    users: int
    places: int
    earned: Interval
    earned_first: Interval
    shown_as_logged: ChiSquare
    of_first: tuple[Estimate, ...]
    of_lists: tuple[Estimate, ...]

    @property
    def wrong_log(self) -> str | None:
        """Why the log itself must be wrong, None where nothing says so."""
        counted = self.shown_as_logged
        if counted.p_value < ALARM:
            return (
                "what was shown does not come as often as its logged probabilities say "
                f"(chi-square {counted.statistic:.1f} at {counted.degrees} degrees of freedom)"
            )
        for estimate in (*self.of_first, *self.of_lists):
            tested = estimate.mean_weight
            if estimate.refusal is None and tested is not None and tested.p_value < ALARM:
                return (
                    f"the weights of {estimate.method.name} are {tested.mean:.4g} on average, and 1 if the "
                    "propensities are right and everything that the target policy shows had a chance to be shown"
                )
        return None

    @property
    def missing_support(self) -> str | None:
        """Why no estimate of whole lists stands, None where one does."""
        refusals = [estimate.refusal for estimate in self.of_lists]
        return None if None in refusals else f"no estimate of whole lists stands: {refusals[-1]}"

    def require(self) -> None:
        """Raises WrongLog or MissingSupport where the answer must not be used."""
        if self.wrong_log is not None:
            raise WrongLog(self.wrong_log)
        if self.missing_support is not None:
            raise MissingSupport(self.missing_support)


def report_on(log: SlateLog, *, level: float = 0.95) -> Report:
    """Everything that the log says of the target policy."""
    first = log.place(0)
    return Report(
        lists=len(log.rewards),
        users=len(np.unique(log.users)),
        places=log.rewards.shape[1],
        earned=interval_of(log.rewards.sum(axis=1), log.users, level=level),
        earned_first=interval_of(first.rewards, log.users, level=level),
        shown_as_logged=shown_as_logged(log),
        of_first=tuple(estimated(make(first), first.rewards, log.users, level=level) for make in SINGLE),
        of_lists=tuple(estimated(make(log), log.rewards.sum(axis=1), log.users, level=level) for make in SLATES),
    )


def estimated(
    weighed: Weighed, earned: NDArray[np.float64], users: NDArray[np.int64], *, level: float = 0.95
) -> Estimate:
    """An estimate with its interval and its checks, beside what was earned [n]."""
    size = effective_size(weighed.weights)
    return Estimate(
        weighed.method,
        interval_of(weighed.values, users, level=level),
        interval_of(weighed.values - earned, users, level=level),
        size,
        mean_weight(weighed, users) if weighed.is_importance else None,
        _refusal(size, len(np.unique(users)), weighed.unseen),
    )


def _refusal(size: float, users: int, unseen: float) -> str | None:
    if users < FEWEST_USERS:
        return f"the log is of {users} users, and {FEWEST_USERS} are the fewest for an interval"
    if unseen > LARGEST_UNSEEN:
        return f"{unseen:.1%} of what the target policy shows is of kinds that the log never showed"
    if size < FEWEST_EFFECTIVE:
        return f"it would rest on {size:.0f} effective decisions, and {FEWEST_EFFECTIVE} are the fewest"
    return None
