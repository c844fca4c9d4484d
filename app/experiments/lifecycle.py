"""An experiment's life: draft → running → stopped, and again as another run. Every change is audited and announced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from app.catalog import versions
from app.errors import Conflict, FieldError, Invalid
from app.experiments import checks
from app.experiments.definitions import Experiment, experiment_of, row_of, running
from app.storage import audit, tables

TABLE = tables.experiments
Stored = Row[Any]


def put(db: Connection, key: str, definition: Mapping[str, Any], *, recommenders: Collection[str], actor: str) -> None:
    """Stores a draft: of a new experiment, in place of an earlier draft, or after a stopped run as the next one.

    definition:   all fields of API.md's but the key; `seed` null: the key
    recommenders: those that are served now
    Raises Invalid for a definition that contradicts itself, Conflict while the experiment runs.
    """
    latest = _locked(db, key)
    if latest is not None and latest.status == "running":
        raise Conflict(f"experiment {key!r} runs: stop it and put another; its coverage can grow by POST …/coverage")
    values = {"definition": definition, "coverage": definition["coverage"]}
    if latest is not None and latest.status == "draft":
        seed = _seed(db, key, latest.run, definition)
        stored = _changed(db, latest, **values, seed=seed, created_at=func.clock_timestamp())
    else:
        stored = _next_run(db, key, latest, definition)
    flaws = checks.flaws(experiment_of(stored), recommenders)
    if flaws:
        raise Invalid(_told(flaws), errors=flaws)
    _record(db, "put", actor, before=latest, after=stored)


def start(
    db: Connection,
    key: str,
    *,
    recommenders: Collection[str],
    defaults: Mapping[str, Any],
    actor: str,
    coverage: float | None = None,
) -> None:
    """Runs the draft, or a stopped experiment again: as its next run, with a fresh seed.

    defaults: what is served now where no variant sets anything, kept for a holdout's control group
    coverage: to begin with; None: the definition's
    Raises NotFound, and Conflict where it runs or can't run beside what runs.
    """
    latest = _found(db, key)
    if latest.status == "running":
        raise Conflict(f"experiment {key!r} runs already, since {latest.started_at:%Y-%m-%d %H:%M} UTC")
    draft = latest if latest.status == "draft" else _next_run(db, key, latest, latest.definition)
    experiment = experiment_of(draft)
    reasons = [*checks.strangers(experiment, recommenders), *checks.conflicts(experiment, running(db))]
    if reasons:
        raise Conflict(_told(reasons), errors=reasons)
    started = _changed(
        db,
        draft,
        status="running",
        coverage=draft.coverage if coverage is None else coverage,
        started_at=func.clock_timestamp(),
        defaults=dict(defaults) if experiment.holdout else None,
    )
    _record(db, "start", actor, before=latest, after=started)


def stop(db: Connection, key: str, *, actor: str) -> None:
    """Ends the run; everybody is served as without it. Raises NotFound, and Conflict where it does not run."""
    latest = _running(db, key)
    stopped = _changed(db, latest, status="stopped", stopped_at=func.clock_timestamp())
    _record(db, "stop", actor, before=latest, after=stopped)


def cover(db: Connection, key: str, coverage: float, *, actor: str) -> None:
    """Lets the running experiment cover this share of users, which may only grow.

    Raises NotFound, and Conflict for one that does not run, for a smaller share, and for a holdout.
    """
    latest = _running(db, key)
    if coverage < latest.coverage:
        said = f"must not shrink, from {latest.coverage:g} to {coverage:g}: users would leave their variants"
        raise _conflict("coverage", said)
    if latest.definition["holdout"] and coverage > latest.coverage:
        raise _conflict("coverage", "of a holdout can't grow: who joined late has seen what it must be kept from")
    if coverage == latest.coverage:
        return
    grown = _changed(db, latest, coverage=coverage)
    _record(db, "coverage", actor, before=latest, after=grown)


def held(db: Connection, key: str) -> Experiment:
    """The latest run, as it stays until the transaction ends, but for what this transaction does. Raises NotFound."""
    return experiment_of(_found(db, key))


def warnings(experiment: Experiment, beside: Iterable[Experiment]) -> list[str]:
    """What is allowed, and worth knowing, of this experiment beside those that run."""
    return checks.warnings(experiment, [other for other in beside if other.key != experiment.key])


def described(stored: Stored) -> dict[str, Any]:
    """A row as the audit log has it. `forced` names users: app/erasure.py knows."""
    return {**stored.definition, **{name: getattr(stored, name) for name in ("run", "status", "seed", "coverage")}}


def _locked(db: Connection, key: str) -> Stored | None:
    """The latest run, while nobody else changes any experiment: the version's row is held until the end."""
    versions.bump(db, "experiments")
    statement = select(TABLE).where(TABLE.c.key == key).order_by(TABLE.c.run.desc()).limit(1)
    return db.execute(statement).one_or_none()


def _found(db: Connection, key: str) -> Stored:
    latest = _locked(db, key)
    return row_of(db, key) if latest is None else latest


def _running(db: Connection, key: str) -> Stored:
    latest = _found(db, key)
    if latest.status != "running":
        raise Conflict(f"experiment {key!r} does not run: it is {latest.status}")
    return latest


def _changed(db: Connection, row: Stored, **values: Any) -> Stored:
    statement = update(TABLE).where(TABLE.c.key == row.key, TABLE.c.run == row.run).values(**values)
    return db.execute(statement.returning(TABLE)).one()


def _next_run(db: Connection, key: str, latest: Stored | None, definition: Mapping[str, Any]) -> Stored:
    run = 1 if latest is None else latest.run + 1
    values = {"seed": _seed(db, key, run, definition), "definition": definition, "coverage": definition["coverage"]}
    return db.execute(insert(TABLE).values(key=key, run=run, **values).returning(TABLE)).one()


def _seed(db: Connection, key: str, run: int, definition: Mapping[str, Any]) -> str:
    """As wanted, unless an earlier run had it: who was in which variant then must not decide it again."""
    wanted: str = definition["seed"] or key
    used = set(db.execute(select(TABLE.c.seed).where(TABLE.c.key == key, TABLE.c.run < run)).scalars())
    return wanted if wanted not in used else next(seed for seed in _numbered(wanted, run) if seed not in used)


def _numbered(seed: str, run: int) -> Sequence[str]:
    return [f"{seed}:{number}" for number in range(run, 2 * run + 1)]


def _record(db: Connection, action: str, actor: str, *, before: Stored | None, after: Stored) -> None:
    audit.record(
        db,
        actor=actor,
        action=f"experiment.{action}",
        subject=f"experiment:{after.key}",
        before=None if before is None else described(before),
        after=described(after),
    )


def _conflict(field: str, said: str) -> Conflict:
    return Conflict(f"body.{field}: {said}", errors=[FieldError(("body", field), said)])


def _told(errors: Sequence[FieldError]) -> str:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{'.'.join(map(str, errors[0].loc))}: {errors[0].msg}{more}"
