"""What an experiment is: its definition as data, and the rows of Postgres that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, select

from app.errors import NotFound
from app.experiments.assignment import Allocation, Namespace
from app.storage import tables

Status = Literal["draft", "running", "stopped"]
Data = Literal["shared", "split"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One arm.

    weight:      share of the experiment's users, 0–1
    recommender: leads the answer; None leaves the one of the route
    parameters:  of the recipe, by name: see app/experiments/parameters.py; absent ones are left
    promotions:  False leaves editors' promotions out (blocks hold for everyone)
    """

    name: str
    weight: float
    recommender: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    promotions: bool = True


@dataclass(frozen=True, slots=True)
class Experiment:
    """One run of an experiment; `variants[0]` is the control.

    coverage: share of users (of the namespace's range, where there is one) who are in it, 0–1
    holdout:  its control group is in no other experiment, and the slates of GET /recommend are made by `defaults`
              on every surface and route; POST /recommend/next takes part in no experiment and keeps no holdout
    data:     whether the arms share counters and training data, which says what the result is an estimate of
    forced:   name of a variant by user id, whatever the hash says
    route:    only users of this route are in it (`new`, `few`, `established`); None: of every route
    defaults: what was served when a holdout started: `chains` by route, `parameters` by name
    """

    key: str
    run: int
    seed: str
    namespace: Namespace | None
    coverage: float
    variants: tuple[Variant, ...]
    holdout: bool = False
    data: Data = "shared"
    forced: Mapping[str, str] = field(default_factory=dict)
    route: str | None = None
    surface: str = "feed"
    status: Status = "draft"
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    defaults: Mapping[str, Any] | None = None
    assignment: Allocation = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {variant.name: number for number, variant in enumerate(self.variants)}
        allocation = Allocation(
            seed=self.seed,
            weights=tuple(variant.weight for variant in self.variants),
            coverage=self.coverage,
            namespace=self.namespace,
            # A name that no variant has is for app/experiments/checks.py to refuse, which looks at a whole experiment.
            forced={user_id: numbers[name] for user_id, name in self.forced.items() if name in numbers},
        )
        object.__setattr__(self, "assignment", allocation)

    @property
    def control(self) -> Variant:
        """What the other variants are compared with."""
        return self.variants[0]


def running(db: Connection) -> tuple[Experiment, ...]:
    """Every running experiment, holdouts first, then by key."""
    table = tables.experiments
    found = map(experiment_of, db.execute(select(table).where(table.c.status == "running")))
    return tuple(sorted(found, key=lambda experiment: (not experiment.holdout, experiment.key)))


def find(db: Connection, key: str, run: int | None = None) -> Experiment:
    """One run, or the latest. Raises NotFound."""
    return experiment_of(row_of(db, key, run))


def row_of(db: Connection, key: str, run: int | None = None, *, for_update: bool = False) -> Any:
    """The row of one run, or of the latest, locked until the transaction ends if asked. Raises NotFound."""
    table = tables.experiments
    statement = select(table).where(table.c.key == key).order_by(table.c.run.desc()).limit(1)
    if run is not None:
        statement = statement.where(table.c.run == run)
    row = db.execute(statement.with_for_update() if for_update else statement).one_or_none()
    if row is None:
        raise NotFound(f"experiment {key!r} does not exist" if run is None else f"experiment {key!r} has no run {run}")
    return row


def experiment_of(row: Any) -> Experiment:
    """The experiment that a row of `experiments` holds."""
    stored = row.definition
    return Experiment(
        key=row.key,
        run=row.run,
        seed=row.seed,
        namespace=_namespace(stored.get("namespace")),
        coverage=row.coverage,
        variants=tuple(_variant(each) for each in stored["variants"]),
        holdout=stored["holdout"],
        data=stored["data"],
        forced=stored["forced"],
        route=stored["route"],
        surface=stored["surface"],
        status=row.status,
        started_at=row.started_at,
        stopped_at=row.stopped_at,
        defaults=row.defaults,
    )


def _namespace(stored: Mapping[str, Any] | None) -> Namespace | None:
    return None if stored is None else Namespace(stored["name"], *stored["range"])


def _variant(stored: Mapping[str, Any]) -> Variant:
    return Variant(
        name=stored["name"],
        weight=stored["weight"],
        recommender=stored["recommender"],
        parameters=stored["parameters"],
        promotions=stored["promotions"],
    )
