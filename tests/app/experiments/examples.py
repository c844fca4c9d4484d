"""An experiment in Postgres as serving leaves it: its row, exposures, pages, events; for tests of its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select

from app.experiments.definitions import Experiment, experiment_of
from app.storage import tables

START = datetime(2026, 3, 2, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CONTROL, TREATMENT = "control", "treatment"


def add_experiment(
    db: Connection,
    key: str = "feed",
    *,
    run: int = 1,
    weights: Mapping[str, float] | None = None,
    started_at: datetime | None = START,
    stopped_at: datetime | None = None,
    **more: Any,
) -> Experiment:
    """A running experiment of two equal arms, unless told otherwise."""
    variants = [
        {"name": name, "weight": weight, "recommender": None, "parameters": {}, "promotions": True}
        for name, weight in (weights or {CONTROL: 0.5, TREATMENT: 0.5}).items()
    ]
    definition = {"variants": variants, "holdout": False, "data": "shared", "forced": {}, "route": None,
                  "surface": "feed", **more}  # fmt: skip
    status = "draft" if started_at is None else "running" if stopped_at is None else "stopped"
    row = {"key": key, "run": run, "seed": key, "definition": definition, "status": status, "coverage": 1.0,
           "started_at": started_at, "stopped_at": stopped_at}  # fmt: skip
    db.execute(insert(tables.experiments), row)
    table = tables.experiments
    return experiment_of(db.execute(select(table).where(table.c.key == key, table.c.run == run)).one())


def expose(db: Connection, *users: str, variant: str, at: datetime = START + DAY, **more: Any) -> None:
    """First exposures of these users to a variant of `feed`, run 1."""
    rows = [
        {"experiment": "feed", "run": 1, "user_id": user, "variant": variant, "exposed_at": at, "route": "established",
         "surface": "feed", "release": None, "request_id": f"first-{user}", "worker": "w1", "marks": [], **more}
        for user in users
    ]  # fmt: skip
    db.execute(insert(tables.exposures), rows)


def add_users(db: Connection, users: Iterable[str]) -> dict[str, int]:
    """Rows by id."""
    statement = insert(tables.users).returning(tables.users.c.user_id, tables.users.c.row)
    return {user: row for user, row in db.execute(statement, [{"user_id": user} for user in users])}


def act(
    db: Connection,
    user_row: int,
    kind: str,
    at: datetime,
    *,
    item: int = 0,
    value: float | None = None,
    received_at: datetime | None = None,
    session: str | None = None,
    request: str | None = None,
) -> None:
    """One event of a user, received when it happened unless told otherwise."""
    row = {"event_id": f"{user_row}-{kind}-{at}-{item}", "user_row": user_row, "item_row": item, "timestamp": at,
           "received_at": received_at or at, "session_id": session, "request_id": request}  # fmt: skip
    if kind == "impression":
        seq = db.exec_driver_sql("select nextval('interactions_seq_seq')").scalar_one()
        db.execute(insert(tables.on_screen), row | {"seq": seq})
    else:
        db.execute(insert(tables.interactions), row | {"kind": kind, "value": value})


def show(
    db: Connection,
    user: str,
    request: str,
    at: datetime,
    *,
    items: Sequence[int] = (1, 2, 3),
    variants: Mapping[str, str] | None = None,
    surface: str = "feed",
) -> None:
    """A page that a user was shown."""
    count = len(items)
    row = {"request_id": request, "shown_at": at, "user_id": user, "surface": surface, "route": "established",
           "recommender": "blend", "variants": dict(variants or {}), "first_position": 1, "item_rows": list(items),
           "sources": ["blend"] * count, "scores": [1.0] * count, "promoted": [False] * count}  # fmt: skip
    db.execute(insert(tables.impressions), row)
