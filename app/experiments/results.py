"""The result of an experiment: first whether it can be trusted, then each metric against the control."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
from psycopg2 import errors
from sqlalchemy import Connection, Engine, event, func, select, text
from sqlalchemy.exc import OperationalError

from app.errors import Conflict, Unavailable
from app.experiments.definitions import Experiment, find
from app.experiments.metrics import Metric
from app.experiments.outcomes import outcomes_of
from app.experiments.population import Population, Scope, lost_exposures, population_of
from app.experiments.soundness import (
    Losses,
    SampleRatios,
    estimand_of,
    losses_of,
    notes,
    problems,
    sample_ratios,
)
from app.experiments.statistics import (
    Comparison,
    NoComparison,
    Outcomes,
    Waiting,
    adjusted,
    compare,
    days_left,
    minimum_detectable_effect,
)
from app.storage.patience import be_patient
from app.storage.tables import experiments, retention_floors

LONGEST_SECONDS = 60
"""So long Postgres may add up for one result, all its statements together; then it is given up."""
MOST_AT_ONCE = 2
"""Results that one process works on: each reads everything that users did, beside the requests of users."""
_RETRY_SECONDS = 10
_LEAST_DAYS = 1 / 24
"""An experiment that has just begun tells no rate of users."""

_turns = threading.BoundedSemaphore(MOST_AT_ONCE)

Correction = Literal["holm", "benjamini_hochberg", "none"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a result is asked for.

    run:        None: the latest that was started
    alpha:      of two-sided tests and intervals
    window:     how long after the first exposure a user is watched; None: to the end of the experiment, or now
    winsor:     quantile at which the largest values are cut; None cuts nothing
    cuped:      adjusts by what users did before the exposure
    correction: of the p-values, over all metrics and variants of this answer
    included:   marks (`forced`, `bot`, `explored`) whose users are analysed all the same
    effect:     the relative lift that `days_left` is about
    power:      how surely an effect is to be found, for `minimum_detectable_effect` and `days_left`
    """

    key: str
    metrics: tuple[Metric, ...]
    run: int | None = None
    alpha: float = 0.05
    window: timedelta | None = None
    winsor: float | None = None
    cuped: bool = True
    correction: Correction = "holm"
    included: frozenset[str] = frozenset()
    effect: float = 0.05
    power: float = 0.8


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one variant; against the control, but for the control itself. None: the data can't tell."""

    variant: str
    users: int
    waiting: int
    mean: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    relative_lift: float | None = None
    relative_interval: tuple[float, float] | None = None
    sequential_interval: tuple[float, float] | None = None
    sequential_relative_interval: tuple[float, float] | None = None
    sequential_p_value: float | None = None
    variance_reduction: float | None = None
    minimum_detectable_effect: float | None = None
    days_left: float | None = None
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric, of every variant, the control first."""

    metric: str
    unit: str
    of: Literal["users", "slates"]
    variants: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """The answer, with what decides over its worth first."""

    key: str
    run: int
    trustworthy: bool
    problems: tuple[str, ...]
    sample_ratio: SampleRatios
    lost_exposures: Losses
    left_out: Mapping[str, int]
    estimand: str
    data: str
    holdout: bool
    status: str
    started_at: datetime
    stopped_at: datetime | None
    until: datetime
    control: str
    window_hours: float | None
    alpha: float
    winsor: float | None
    cuped: bool
    correction: Correction
    notes: tuple[str, ...]
    metrics: tuple[MetricResult, ...]


class Read(NamedTuple):
    """What Postgres said, all of one moment."""

    scope: Scope
    population: Population
    losses: Losses
    kept_from: Mapping[str, datetime]
    outcomes: Mapping[str, list[Outcomes]]


@contextmanager
def one_of_few() -> Iterator[None]:
    """Around all that a result takes. Raises Unavailable where as many as may be are under way."""
    if not _turns.acquire(blocking=False):
        words = f"{MOST_AT_ONCE} results are being worked out by this process; ask again when they are done"
        raise Unavailable(words, retry_after=_RETRY_SECONDS)
    try:
        yield
    finally:
        _turns.release()


@one_of_few()
def results_of(engine: Engine, ask: Ask, *, impressions_days: int = 0) -> Results:
    """Takes seconds where there are millions of events: not for the event loop.

    impressions_days: how long shown pages are kept, and exposures after the end, as in the settings
    Raises NotFound, Conflict for an experiment that has not begun or has lost too many exposures, and Unavailable
    where it takes Postgres too long, or others are asked for already.
    """
    with reading(engine) as db:
        read = _read(db, ask, impressions_days)
    return _judged(read, ask)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection of its own whose snapshot does not move, with an end to what its statements may take together."""
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    try:
        with snapshot.connect() as db:
            # Or the next request would have a connection that waits for ever.
            db.detach()
            be_patient(db)
            _give_up_at(db, time.monotonic() + LONGEST_SECONDS)
            with db.begin():
                yield db
    except (OperationalError, errors.QueryCanceled) as error:
        if isinstance(getattr(error, "orig", error), errors.QueryCanceled):
            words = f"the result took longer than {LONGEST_SECONDS} s; ask for fewer metrics or a shorter window"
            raise Unavailable(words) from error
        raise


def _give_up_at(db: Connection, deadline: float) -> None:
    """Lets each statement take what those before it left. deadline: monotonic seconds."""

    @event.listens_for(db, "before_cursor_execute")
    def leave_the_rest(_db: Connection, cursor: Any, *_statement: object) -> None:
        left = max(1, round((deadline - time.monotonic()) * 1000))  # 0 would be no end at all
        cursor.execute(f"set local statement_timeout = {left}")


def asked_for(db: Connection, ask: Ask) -> Experiment:
    """The run that was asked for, else the latest that was started: a draft of the next one hides nothing.

    Raises NotFound.
    """
    latest = select(func.max(experiments.c.run)).where(
        experiments.c.key == ask.key, experiments.c.started_at.isnot(None)
    )
    return find(db, ask.key, ask.run or db.execute(latest).scalar_one())


def scope_of(experiment: Experiment, ask: Ask, *, now: datetime) -> Scope:
    """Raises Conflict for an experiment that has not begun."""
    if experiment.started_at is None:
        raise Conflict(f"experiment {experiment.key!r} has no results: it is a {experiment.status} and has not begun")
    return Scope(experiment, experiment.started_at, experiment.stopped_at or now, ask.window, ask.included)


def _read(db: Connection, ask: Ask, impressions_days: int) -> Read:
    now: datetime = db.execute(text("select now()")).scalar_one()
    experiment = asked_for(db, ask)
    scope = scope_of(experiment, ask, now=now)
    population = population_of(db, scope)
    # Refused before anything is added up.
    losses = losses_of(lost_exposures(db, experiment), population, experiment)
    kept = kept_from(db, now, impressions_days)
    outcomes = outcomes_of(db, scope, ask.metrics, with_before=ask.cuped)
    return Read(scope, population, losses, kept, outcomes)


def kept_from(db: Connection, now: datetime, impressions_days: int) -> dict[str, datetime]:
    """From when on there is everything, by what it is; absent for what was never pruned."""
    words = {"events": "events", "on_screen": "events of what was on screen"}
    floors = db.execute(select(retention_floors.c.what, retention_floors.c.kept_from))
    kept = {words[what]: since for what, since in floors}
    if impressions_days:
        kept["shown pages"] = kept["exposures"] = now - timedelta(days=impressions_days)
    return kept


def _judged(read: Read, ask: Ask) -> Results:
    scope, population, experiment = read.scope, read.population, read.scope.experiment
    ratios = sample_ratios(population, experiment)
    found = tuple(problems(ratios, population, ask.metrics, read.kept_from, scope))
    return Results(
        key=experiment.key,
        run=experiment.run,
        trustworthy=not found,
        problems=found,
        sample_ratio=ratios,
        lost_exposures=read.losses,
        left_out=population.left_out,
        estimand=estimand_of(experiment),
        data=experiment.data,
        holdout=experiment.holdout,
        status=experiment.status,
        started_at=scope.started_at,
        stopped_at=experiment.stopped_at,
        until=scope.until,
        control=experiment.control.name,
        window_hours=None if scope.window is None else scope.window / timedelta(hours=1),
        alpha=ask.alpha,
        winsor=ask.winsor,
        cuped=ask.cuped,
        correction=ask.correction,
        notes=tuple(notes(population, scope)),
        metrics=_corrected([_measured(metric, read, ask) for metric in ask.metrics], ask.correction),
    )


def _measured(metric: Metric, read: Read, ask: Ask) -> MetricResult:
    variants = read.scope.experiment.variants
    control, *others = outcomes = read.outcomes[metric.name]
    measured = [
        Measured(variant.name, each.users, read.population.waiting[variant.name], mean_of(each))
        for variant, each in zip(variants, outcomes, strict=True)
    ]
    against = [_against(control, each, of, read, ask) for each, of in zip(others, measured[1:], strict=True)]
    return MetricResult(metric.name, metric.unit, "slates" if metric.is_of_slates else "users", (measured[0], *against))


def _against(control: Outcomes, variant: Outcomes, measured: Measured, read: Read, ask: Ask) -> Measured:
    try:
        found = compared(control, variant, read.scope, ask)
    except NoComparison as error:
        return replace(measured, missing=error.detail)
    least, days = _planned(found, measured.variant, read, ask)
    return replace(
        measured,
        difference=found.difference,
        interval=found.interval,
        p_value=found.p_value,
        relative_lift=found.relative_lift,
        relative_interval=found.relative_interval,
        sequential_interval=found.sequential_interval,
        sequential_relative_interval=found.sequential_relative_interval,
        sequential_p_value=found.sequential_p_value,
        variance_reduction=found.variance_reduction if found.cuped else None,
        minimum_detectable_effect=least,
        days_left=days,
    )


def compared(control: Outcomes, variant: Outcomes, scope: Scope, ask: Ask) -> Comparison:
    """Raises NoComparison."""
    return compare(_final(control, scope), _final(variant, scope), alpha=ask.alpha, winsor=ask.winsor, cuped=ask.cuped)


def _final(outcomes: Outcomes, scope: Scope) -> Outcomes:
    """Whoever is in the figures of a window has had it whole; of totals without one nobody's are final."""
    return replace(outcomes, is_complete=np.ones(outcomes.users, np.bool_)) if scope.is_final else outcomes


def mean_of(outcomes: Outcomes) -> float | None:
    """As observed; None where there is nobody, or nothing to divide by."""
    below = outcomes.users if outcomes.denominator is None else outcomes.denominator.sum()
    return float(outcomes.numerator.sum() / below) if below else None


def _planned(found: Comparison, variant: str, read: Read, ask: Ask) -> tuple[float | None, float | None]:
    """What could be found now, and in how many days a lift of `effect` could; nothing while nobody differs."""
    scope = read.scope
    if found.interval is None:
        return None, None
    least = minimum_detectable_effect(found, alpha=ask.alpha, power=ask.power)
    if scope.experiment.stopped_at is not None or not found.mean_control:
        return least, None
    days = max((scope.until - scope.started_at) / timedelta(days=1), _LEAST_DAYS)
    both = scope.experiment.control.name, variant
    users_per_day = sum(read.population.in_arms[name] for name in both) / days
    effect = abs(ask.effect * found.mean_control)
    if not effect:  # so small a mean that a share of it is rounded to nothing
        return least, None
    waiting = _waiting(both, read)
    return least, days_left(found, effect, users_per_day, alpha=ask.alpha, power=ask.power, waiting=waiting)


def _waiting(variants: Sequence[str], read: Read) -> Waiting:
    """Those who will be in the figures without anybody new."""
    scope, population = read.scope, read.population
    day, window = timedelta(days=1), scope.window or timedelta()
    left = [(population.last[name] + window - scope.until) / day for name in variants if name in population.last]
    users = sum(population.waiting[name] for name in variants)
    return Waiting(users, max(left, default=0.0), window / day)


def _corrected(measured: Sequence[MetricResult], correction: Correction) -> tuple[MetricResult, ...]:
    """With adjusted p-values, over everything that was tested for this answer."""
    tested = [each.p_value for metric in measured for each in metric.variants if each.p_value is not None]
    if correction == "none" or not tested:
        return tuple(measured)
    left = iter(adjusted(tested, method=correction))
    return tuple(
        replace(metric, variants=tuple(
            each if each.p_value is None else replace(each, adjusted_p_value=next(left)) for each in metric.variants
        ))
        for metric in measured
    )  # fmt: skip
