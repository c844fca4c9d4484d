"""Experiments: defined, started, covered, stopped; in force on the next request of every worker."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, select

from app.api.bodies import Name, Strict, example, json_answer
from app.api.cursors import Cursor, PageLimit, decode_cursor
from app.api.dependencies import ResourcesDep, require
from app.api.ids import UserId
from app.api.lists import listing
from app.experiments import lifecycle
from app.experiments.definitions import Experiment, experiment_of, row_of, running
from app.resources import Resources
from app.serving import routing
from app.storage import tables
from app.storage.keys import ApiKey

router = APIRouter(prefix="/admin/experiments", tags=["experiments"])

Admin = Annotated[ApiKey, Depends(require("admin"))]
KEY = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Key = Annotated[str, Path(pattern=KEY, description="as it was posted")]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]

DEFINITION: dict[str, Any] = {
    "key": "feed-ranker", "seed": "feed-ranker", "namespace": {"name": "feed", "range": [0.0, 1.0]}, "coverage": 1.0,
    "variants": [
        {"name": "control", "weight": 0.5, "recommender": "als_hybrid", "parameters": {}, "promotions": True},
        {"name": "varied", "weight": 0.5, "recommender": "blend", "parameters": {"diversity": 0.2}, "promotions": True},
    ],
    "holdout": False, "data": "shared", "forced": {"some-user": "varied"}, "route": "established", "surface": "feed",
}  # fmt: skip
STORED = DEFINITION | {
    "run": 1, "status": "running", "defaults": None, "created_at": "2026-11-22T09:30:00Z",
    "started_at": "2026-11-22T09:31:00Z", "stopped_at": None, "warnings": [],
}  # fmt: skip


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError("the first must be less than the second")
    return ends


class NamespaceBody(Strict):
    """Experiments with ranges of one namespace that do not overlap share no user."""

    name: Name = Field(description="the same for all that are kept apart")
    range: Annotated[tuple[Share, Share], AfterValidator(_ordered)] = Field(
        description="[from, to) of the users, 0–1", examples=[[0.0, 0.5]]
    )


class VariantBody(Strict):
    """One arm. What it does not set stays as it is."""

    name: Name = Field(description="once per experiment")
    weight: float = Field(strict=True, gt=0, le=1, description="share of the experiment's users; all sum to 1")
    recommender: Name | None = Field(default=None, description="leads the answer; null: the route's own")
    parameters: dict[Name, Annotated[float, Field(strict=True, allow_inf_nan=False)]] = Field(
        default={}, max_length=100, description="of the recipe: `diversity` (0–1)", examples=[{"diversity": 0.2}]
    )
    promotions: bool = Field(default=True, strict=True, description="false: without editors' promotions; blocks hold")


class ExperimentBody(Strict):
    """A definition; it is stored as a draft. The first variant is the control."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [DEFINITION]})

    key: str = Field(pattern=KEY, description="its name, for good")
    seed: Name | None = Field(default=None, description="what the hash starts with; null: the key")
    namespace: NamespaceBody | None = Field(default=None, description="null: all users")
    coverage: Share = Field(default=1.0, description="share of users in it; can only grow while it runs")
    variants: list[VariantBody] = Field(min_length=2, max_length=20, description="the control first")
    holdout: bool = Field(
        default=False,
        strict=True,
        description="hashed first; its first variant is kept out of all experiments and of all later defaults",
    )
    data: Literal["shared", "split"] = Field(
        default="shared",
        description="whether the arms share counters and training data; a statement, printed beside results",
    )
    forced: dict[UserId, Name] = Field(
        default={}, max_length=1000, description="variant by user id, whatever the hash says; left out of results"
    )
    route: Literal["new", "few", "established", "listening"] | None = Field(
        default=None, description="only users who had this route when first exposed; null: all; `listening` is refused"
    )
    surface: Name = Field(
        default="feed", description="where the slates are shown; not looked at for a holdout; `player` is refused"
    )


class CoverageBody(Strict):
    """How many users are in it from now on."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [{"coverage": 0.25}]})

    coverage: Share = Field(description="share of users, at least as large as it is")


class ExperimentAnswer(BaseModel):
    """One run of an experiment."""

    model_config = example(**STORED)

    key: str = Field(description="as posted")
    run: int = Field(description="from 1; one more with each start after a stop")
    status: Literal["draft", "running", "stopped"] = Field(description="where it is in its life")
    seed: str = Field(description="of this run: the one that was posted, unless an earlier run had it")
    namespace: dict[str, Any] | None = Field(description="as posted")
    coverage: float = Field(description="share of users in it now")
    variants: list[dict[str, Any]] = Field(description="the control first")
    holdout: bool = Field(description="as posted")
    data: str = Field(description="as posted")
    forced: dict[str, str] = Field(description="as posted, without users who were erased")
    route: str | None = Field(description="as posted")
    surface: str = Field(description="as posted")
    created_at: datetime = Field(description="RFC 3339, UTC")
    started_at: datetime | None = Field(description="null: not yet")
    stopped_at: datetime | None = Field(description="null: not yet")
    defaults: dict[str, Any] | None = Field(description="of a started holdout: what its control group gets")
    warnings: list[str] = Field(description="what is allowed and worth knowing")


class ExperimentPage(BaseModel):
    """The latest run of each experiment, by key."""

    model_config = example(items=[STORED], next_cursor=None)

    items: list[ExperimentAnswer] = Field(description="at most `limit`")
    next_cursor: str | None = Field(description="null where there is no more")


@router.post("", status_code=201, response_model=ExperimentAnswer, summary="Define an experiment")
def put_experiment(resources: ResourcesDep, admin: Admin, body: ExperimentBody) -> Response:
    """Stores a draft, in place of an earlier one; of an experiment that was stopped, the draft of its next run."""
    definition = body.model_dump(mode="json", exclude={"key"})
    with resources.engine.begin() as db:
        lifecycle.put(db, body.key, definition, recommenders=_served(resources), actor=admin.name)
        answer = _answer(db, body.key)
    resources.publish_versions()
    return json_answer(answer, 201)


@router.post("/{key}/start", response_model=ExperimentAnswer, summary="Run it")
def start(resources: ResourcesDep, admin: Admin, key: Key) -> Response:
    """A draft, or a stopped one again: as its next run, with a fresh seed. 409 where it can't run beside others."""
    with resources.engine.begin() as db:
        lifecycle.start(db, key, recommenders=_served(resources), defaults=routing.defaults(), actor=admin.name)
        answer = _answer(db, key)
    resources.publish_versions()
    return json_answer(answer)


@router.post("/{key}/stop", response_model=ExperimentAnswer, summary="End its run")
def stop(resources: ResourcesDep, admin: Admin, key: Key) -> Response:
    """From the next request on, everybody is served as without it."""
    with resources.engine.begin() as db:
        lifecycle.stop(db, key, actor=admin.name)
        answer = _answer(db, key)
    resources.publish_versions()
    return json_answer(answer)


@router.post("/{key}/coverage", response_model=ExperimentAnswer, summary="Let it cover more users")
def cover(resources: ResourcesDep, admin: Admin, key: Key, body: CoverageBody) -> Response:
    """Users join; none changes variant."""
    with resources.engine.begin() as db:
        lifecycle.cover(db, key, body.coverage, actor=admin.name)
        answer = _answer(db, key)
    resources.publish_versions()
    return json_answer(answer)


@router.get("", response_model=ExperimentPage, summary="Every experiment", dependencies=[Depends(require("admin"))])
def list_experiments(resources: ResourcesDep, limit: PageLimit = 100, cursor: Cursor = None) -> Response:
    """Its latest run, by key."""
    table = tables.experiments
    latest = select(table).distinct(table.c.key).order_by(table.c.key, table.c.run.desc()).limit(limit + 1)
    if cursor is not None:
        latest = latest.where(table.c.key > decode_cursor(cursor, str, "experiments"))
    with resources.engine.connect() as db:
        beside = running(db)
        found = [{"after": row.key} | _described(row, beside) for row in db.execute(latest)]
    return json_answer(listing(found, limit, "after", "experiments"))


@router.get(
    "/{key}", response_model=ExperimentAnswer, summary="One experiment", dependencies=[Depends(require("admin"))]
)
def get_experiment(
    resources: ResourcesDep,
    key: Key,
    run: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="null: the latest")] = None,
) -> Response:
    with resources.engine.connect() as db:
        return json_answer(_answer(db, key, run))


def _served(resources: Resources) -> frozenset[str]:
    return frozenset(resources.inventories.current.release.recommenders)


def _answer(db: Connection, key: str, run: int | None = None) -> dict[str, Any]:
    return _described(row_of(db, key, run), running(db))


def _described(row: Any, beside: Sequence[Experiment]) -> dict[str, Any]:
    """beside: every experiment that runs."""
    times = {name: getattr(row, name) for name in ("created_at", "started_at", "stopped_at")}
    warnings = lifecycle.warnings(experiment_of(row), beside)
    return {"key": row.key} | lifecycle.described(row) | times | {"defaults": row.defaults, "warnings": warnings}
