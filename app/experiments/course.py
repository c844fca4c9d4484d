"""How the lift of one metric went from day to day, with an interval that holds at every one of these looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import Engine, text

from app.errors import Invalid
from app.experiments.outcomes import Settled, settled_outcomes
from app.experiments.population import Scope, lost_exposures, population_of
from app.experiments.results import Ask, asked_for, kept_from, one_of_few, reading, scope_of
from app.experiments.soundness import losses_of, problems, sample_ratios
from app.experiments.statistics import Comparison, NoComparison, Outcomes, compare

MOST_POINTS = 60


@dataclass(frozen=True, slots=True)
class Point:
    """What was known at a time, as shares of the control's mean: 0.1 is 10 % more.

    users:    of both variants, whose window was over by then
    interval: for one planned look; always_valid: for every look. None: the data could not tell
    """

    at: datetime
    users: int
    lift: float
    interval: tuple[float, float] | None
    always_valid: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Course:
    """The points of each variant but the control, oldest first."""

    key: str
    metric: str
    control: str
    window: timedelta
    alpha: float
    problems: tuple[str, ...]
    variants: Mapping[str, tuple[Point, ...]]


@one_of_few()
def course_of(engine: Engine, ask: Ask, *, impressions_days: int = 0) -> Course:
    """Of the first metric that is asked for. Raises Invalid without a window, and what `results_of` raises.

    impressions_days: as for `results_of`
    With a window a user's figure is final when it is over, so that the users of an early day have the same figures on a
    later one: one scan tells of all days, and intervals that hold at every look exist.
    """
    if ask.window is None:
        words = "'all' has no course: the totals of users would grow as it goes on; give 1h … 365d"
        raise Invalid.field(("query", "window"), words)
    metric = ask.metrics[0]
    with reading(engine) as db:
        now: datetime = db.execute(text("select now()")).scalar_one()
        experiment = asked_for(db, ask)
        scope = scope_of(experiment, ask, now=now)
        population = population_of(db, scope)
        losses_of(lost_exposures(db, experiment), population, experiment)
        kept = kept_from(db, now, impressions_days)
        control, *others = settled_outcomes(db, scope, metric, with_before=ask.cuped)
    ratios = sample_ratios(population, experiment)
    names = [variant.name for variant in experiment.variants[1:]]
    return Course(
        key=experiment.key,
        metric=metric.name,
        control=experiment.control.name,
        window=ask.window,
        alpha=ask.alpha,
        problems=tuple(problems(ratios, population, [metric], kept, scope)),
        variants={name: tuple(_points(control, of, scope, ask)) for name, of in zip(names, others, strict=True)},
    )


def _points(control: Settled, variant: Settled, scope: Scope, ask: Ask) -> Iterator[Point]:
    for at in looks(scope):
        try:
            found = compare(_by(control, at), _by(variant, at), alpha=ask.alpha, winsor=ask.winsor, cuped=ask.cuped)
        except NoComparison:
            continue
        if found.relative_lift is not None:
            yield _point(at, found, found.relative_lift)


def _point(at: datetime, found: Comparison, lift: float) -> Point:
    users = found.users_control + found.users_variant
    return Point(at, users, lift, found.relative_interval, found.sequential_relative_interval)


def _by(settled: Settled, at: datetime) -> Outcomes:
    """The users whose window was over."""
    over = settled.since <= at.timestamp()
    known = replace(settled.outcomes, is_complete=over).complete()
    return replace(known, is_complete=np.ones(known.users, np.bool_))


def looks(scope: Scope) -> list[datetime]:
    """Every midnight (UTC) in the scope and its end; of a long one every second, third … midnight."""
    began, until = scope.started_at.astimezone(UTC), scope.until.astimezone(UTC)
    midnight = began.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    days = max(0, (until - midnight).days + 1) if until > midnight else 0
    step = -(-days // MOST_POINTS) or 1
    return [*(midnight + timedelta(days=day) for day in range(0, days, step)), until]
