"""More and more users, step by step, for as long as nothing that must not get worse does.

`decide` is pure. `look` makes one decision and acts on it; what it needs to know stands in Postgres, so whoever looks
next, after a restart or from another machine, goes on where the last one was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Engine, func, select

from app.errors import Conflict, Invalid, Unavailable
from app.experiments import lifecycle
from app.experiments.definitions import Experiment, find
from app.experiments.metrics import metric_of
from app.experiments.results import Ask, Results, results_of
from app.storage import audit
from app.storage.database import POSTGRES_ERRORS, cause_of
from app.storage.tables import audit_log

STOPS_BELOW = 1e-6
"""The p-value of a sample ratio that ends a run for good. It is looked at anew each hour, and chance gets as many
tries: a sound run is stopped with at most this chance times the looks. From here to the 0.001 that takes the trust
from a result (statistics/sample_ratio.py), a ramp waits, and goes on where chance evens out."""

Worse = Literal["lower", "higher"]
Action = Literal["start", "grow", "wait", "stop", "done", "ended"]


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A metric that must not get worse. worse: which way that is."""

    metric: str
    worse: Worse = "lower"


@dataclass(frozen=True, slots=True)
class Reading:
    """A guardrail of one variant. interval: of the difference to the control, holding at every look; None: not yet."""

    guardrail: Guardrail
    variant: str
    interval: tuple[float, float] | None

    @property
    def is_bad(self) -> bool:
        """Whether the whole interval is on the bad side."""
        if self.interval is None:
            return False
        return self.interval[1] < 0 if self.guardrail.worse == "lower" else self.interval[0] > 0

    def __str__(self) -> str:
        said = "unknown yet" if self.interval is None else f"from {self.interval[0]:+.4g} to {self.interval[1]:+.4g}"
        return f"{self.guardrail.metric} of {self.variant!r} {said}"


@dataclass(frozen=True, slots=True)
class Plan:
    """steps: coverages, growing, 0–1; every: how long each lasts at least; window: how long a user is watched."""

    steps: tuple[float, ...]
    every: timedelta
    guardrails: tuple[Guardrail, ...]
    window: timedelta | None = timedelta(days=1)
    alpha: float = 0.05

    def __post_init__(self) -> None:
        given = ",".join(f"{step:g}" for step in self.steps)
        if not self.steps or not all(0 < step <= 1 for step in self.steps):
            raise Invalid.field(("steps",), f"{given!r} must be coverages above 0 and up to 1")
        if list(self.steps) != sorted(set(self.steps)):
            raise Invalid.field(("steps",), f"{given!r} must grow from each to the next")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look has found.

    coverage: of now; since: when it became so
    mismatch: what the sample ratio says, where it is off beyond chance
    doubts:   why the figures can't be trusted otherwise, or there are none
    """

    coverage: float
    since: datetime
    now: datetime
    mismatch: str | None = None
    doubts: tuple[str, ...] = ()
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why. coverage: from now on."""

    action: Action
    coverage: float
    reason: str


def decide(plan: Plan, seen: Seen) -> Decision:
    """Harm first, then doubts, time, and whether the guardrails tell anything: what can't be judged does not grow.

    Below the first step doubts hold it too, but neither time nor an interval that is not known yet: a draft begins with
    the first step before anything can be known, and with fewer users than that nothing may ever be.
    """
    harm = _harm(seen)
    if harm is not None:
        return Decision("stop", seen.coverage, harm)
    if seen.doubts:
        return Decision("wait", seen.coverage, seen.doubts[0])
    if seen.coverage < plan.steps[0]:
        return Decision("grow", plan.steps[0], "the first step")
    hindrance = _hindrance(plan, seen)
    if hindrance is not None:
        return Decision("wait", seen.coverage, hindrance)
    steps_left = [step for step in plan.steps if step > seen.coverage]
    if steps_left:
        return Decision("grow", steps_left[0], "no guardrail is worse")
    return Decision("done", seen.coverage, "the last step is over, and no guardrail is worse")


def _harm(seen: Seen) -> str | None:
    if seen.mismatch is not None:
        return seen.mismatch
    return next((f"{reading} is worse than the control" for reading in seen.readings if reading.is_bad), None)


def _hindrance(plan: Plan, seen: Seen) -> str | None:
    """Why it stays as it is for now."""
    over = seen.since + plan.every
    if seen.now < over:
        return f"this step lasts until {over:%Y-%m-%d %H:%M} UTC"
    return next((str(reading) for reading in seen.readings if reading.interval is None), None)


def look(
    engine: Engine,
    key: str,
    plan: Plan,
    *,
    recommenders: Callable[[], Collection[str]],
    defaults: Mapping[str, Any],
    impressions_days: int,
    actor: str,
) -> Decision:
    """Decides once and does it, with a line in the audit log. A draft is started at the first step.

    recommenders: asked for a draft alone; it and defaults: as in `lifecycle.start`
    impressions_days: as in `results.results_of`
    Raises NotFound, Conflict for a holdout or one that can't run beside others, and POSTGRES_ERRORS.
    """
    with engine.begin() as db:
        experiment = find(db, key)
        if experiment.holdout:
            raise Conflict(f"experiment {key!r} is a holdout: its coverage can't grow")
        if experiment.status == "stopped":
            return Decision("ended", experiment.coverage, _why_it_stopped(db, experiment))
        if experiment.status == "draft":
            decision = Decision("start", plan.steps[0], "the first step")
            served = recommenders()
            lifecycle.start(db, key, recommenders=served, defaults=defaults, actor=actor, coverage=decision.coverage)
            _record(db, find(db, key), decision, (), actor)
            return decision
        now = db.execute(select(func.now())).scalar_one()
        since = _covered_since(db, experiment) or now
    seen = _seen(engine, experiment, plan, impressions_days, now=now, since=since)
    with engine.begin() as db:
        decision = _act(db, experiment, decide(plan, seen), actor)
        _record(db, experiment, decision, seen.readings, actor)
    return decision


def _act(db: Connection, experiment: Experiment, decision: Decision, actor: str) -> Decision:
    """Does it, unless somebody was quicker: what was decided is of this run, and growth of this coverage."""
    if decision.action not in ("stop", "grow"):
        return decision
    now = lifecycle.held(db, experiment.key)
    if (now.run, now.status) != (experiment.run, "running"):
        return Decision("ended", experiment.coverage, f"run {experiment.run} was stopped by hand meanwhile")
    if decision.action == "stop":
        lifecycle.stop(db, experiment.key, actor=actor)
        return replace(decision, coverage=now.coverage)
    if now.coverage != experiment.coverage:
        return Decision("wait", now.coverage, "somebody else let it grow meanwhile")
    lifecycle.cover(db, experiment.key, decision.coverage, actor=actor)
    return decision


def _seen(
    engine: Engine, experiment: Experiment, plan: Plan, impressions_days: int, *, now: datetime, since: datetime
) -> Seen:
    metrics = tuple(metric_of(guardrail.metric) for guardrail in plan.guardrails)
    ask = Ask(experiment.key, metrics, run=experiment.run, alpha=plan.alpha, window=plan.window, correction="none")
    try:
        results = results_of(engine, ask, impressions_days=impressions_days)
    except (Conflict, Unavailable) as refused:
        # Too many exposures were lost for any figure, or Postgres is too busy for one.
        return Seen(experiment.coverage, since, now, doubts=(refused.detail,))
    except POSTGRES_ERRORS as error:
        return Seen(experiment.coverage, since, now, doubts=(f"Postgres failed: {cause_of(error)}",))
    ratio = results.sample_ratio
    said = f"the sample ratio is off: {dict(ratio.counts)}, p = {ratio.p_value:.2g}"
    mismatch = said if ratio.p_value < STOPS_BELOW else None
    return Seen(experiment.coverage, since, now, mismatch, results.problems, _readings(plan.guardrails, results))


def _readings(guardrails: Sequence[Guardrail], results: Results) -> tuple[Reading, ...]:
    return tuple(
        Reading(guardrail, variant.variant, variant.sequential_interval)
        for guardrail, metric in zip(guardrails, results.metrics, strict=True)
        for variant in metric.variants[1:]
    )


def _covered_since(db: Connection, experiment: Experiment) -> datetime | None:
    """When the coverage became what it is; when the run began, where the log does not tell any more."""
    table = audit_log
    changed = select(func.max(table.c.at)).where(
        table.c.subject == f"experiment:{experiment.key}",
        table.c.action.in_(("experiment.start", "experiment.coverage")),
        table.c.after["run"].as_integer() == experiment.run,
    )
    return db.execute(changed).scalar() or experiment.started_at


def _why_it_stopped(db: Connection, experiment: Experiment) -> str:
    table = audit_log
    last = (
        select(table.c.after["reason"].as_string())
        .where(
            table.c.subject == f"experiment:{experiment.key}",
            table.c.action == "experiment.ramp",
            table.c.after["run"].as_integer() == experiment.run,
            table.c.after["decision"].as_string() == "stop",
        )
        .order_by(table.c.id.desc())
        .limit(1)
    )
    reason = db.execute(last).scalar()
    return f"it was stopped: {reason}" if reason else "it was stopped by hand"


def _record(
    db: Connection, experiment: Experiment, decision: Decision, readings: Sequence[Reading], actor: str
) -> None:
    after = {
        "run": experiment.run,
        "decision": decision.action,
        "coverage": decision.coverage,
        "reason": decision.reason,
        "guardrails": [
            {
                "metric": reading.guardrail.metric,
                "worse": reading.guardrail.worse,
                "variant": reading.variant,
                "interval": None if reading.interval is None else list(reading.interval),
            }
            for reading in readings
        ],
    }
    audit.record(db, actor=actor, action="experiment.ramp", subject=f"experiment:{experiment.key}", after=after)
