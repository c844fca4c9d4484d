"""Items as the catalogue knows them. Every write notes its transaction, by which workers find what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from sqlalchemy import ARRAY, Connection, Text, cast, func, select, text, update

from app.catalog import rows, versions
from app.errors import NotFound
from app.storage import tables

CONTENT = (
    "kind", "title", "text", "categories", "tags", "creator", "published_at", "features", "attributes",
)  # fmt: skip
NOTHING: dict[str, Any] = dict.fromkeys(CONTENT) | {"categories": [], "tags": [], "attributes": {}}
COLUMNS = (
    tables.items.c.item_id, *(tables.items.c[name] for name in CONTENT), tables.items.c.created_at,
    tables.items.c.updated_at,
)  # fmt: skip
# Locked in one order for all writers: an update by itself locks in whatever order its plan has.
LOCK = "SELECT deleted_at FROM items WHERE item_id = ANY(%(ids)s) ORDER BY row FOR NO KEY UPDATE"
REPLACE = """
    UPDATE items SET kind = new.kind, title = new.title, text = new.text, categories = new.categories,
        tags = new.tags, creator = new.creator, published_at = new.published_at, features = new.features,
        attributes = new.attributes, updated_at = now(), deleted_at = NULL, changed_xid = pg_current_xact_id()
    FROM json_to_recordset(%(items)s) AS new (
        item_id text, kind text, title text, text text, categories text[], tags text[], creator text,
        published_at timestamptz, features real[], attributes jsonb)
    WHERE items.item_id = new.item_id
"""


@dataclass(frozen=True, slots=True)
class Item:
    """What an item is about. features: finite numbers, kept as float32."""

    item_id: str
    kind: str | None = None
    title: str | None = None
    text: str | None = None
    categories: Sequence[str] = ()
    tags: Sequence[str] = ()
    creator: str | None = None
    published_at: datetime | None = None
    features: Sequence[float] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def put(db: Connection, items: Sequence[Item]) -> int:
    """Creates or replaces these items, each named once; how many are new.

    A deleted item comes back under its old row, so what users did with it counts again.
    """
    ids = [item.item_id for item in items]
    known = rows.find_items(db, ids)
    rows.allocate_items(db, ids)
    locked = db.exec_driver_sql(LOCK, {"ids": ids}).scalars().all()
    records = [asdict(item) | {"features": as_reals(item.features)} for item in items]
    db.exec_driver_sql(REPLACE, {"items": orjson.dumps(records).decode()})
    deleted = sum(deleted_at is not None for deleted_at in locked)
    return len(ids) - len(known) + deleted


def patch(db: Connection, item_id: str, changes: Mapping[str, Any]) -> None:
    """Replaces the given columns. Raises NotFound, also for a deleted item."""
    if "features" in changes:
        changes = {**changes, "features": as_reals(changes["features"])}
    _update(db, item_id, changes)


def delete(db: Connection, item_id: str) -> None:
    """Takes the item out of every answer and forgets its content; its row and what users did with it stay.

    Bumps the version of deletions; the caller publishes it after the commit. Raises NotFound.
    """
    _update(db, item_id, NOTHING | {"deleted_at": func.now()})
    versions.bump(db, "deletions")


def _update(db: Connection, item_id: str, values: Mapping[str, Any]) -> None:
    items = tables.items
    statement = (
        update(items)
        .where(items.c.item_id == item_id, items.c.deleted_at.is_(None))
        .values({**values, "updated_at": func.now(), "changed_xid": text("pg_current_xact_id()")})
        .returning(items.c.row)
    )
    if db.execute(statement).one_or_none() is None:
        raise unknown(item_id)


def get(db: Connection, item_id: str) -> dict[str, Any]:
    """The item as it is stored. Raises NotFound, also for a deleted item."""
    items = tables.items
    statement = select(*COLUMNS).where(items.c.item_id == item_id, items.c.deleted_at.is_(None))
    found = db.execute(statement).mappings().one_or_none()
    if found is None:
        raise unknown(item_id)
    return dict(found)


def page(
    db: Connection, *, category: str | None = None, kind: str | None = None, after_row: int, limit: int
) -> list[dict[str, Any]]:
    """Items in the order of their rows, behind `after_row` (-1: from the first); each with its `row`."""
    items = tables.items
    statement = select(items.c.row, *COLUMNS).where(items.c.row > after_row, items.c.deleted_at.is_(None))
    if category is not None:
        statement = statement.where(items.c.categories.bool_op("@>")(cast([category], ARRAY(Text))))
    if kind is not None:
        statement = statement.where(items.c.kind == kind)
    return [dict(found) for found in db.execute(statement.order_by(items.c.row).limit(limit)).mappings()]


def as_reals(features: Sequence[float] | None) -> list[float] | None:
    """As float32 has them: Postgres refuses to round a tiny number to zero, and this does it before."""
    return None if features is None else np.asarray(features, np.float32).tolist()


def unknown(item_id: str) -> NotFound:
    return NotFound(f"item {item_id!r} does not exist")
