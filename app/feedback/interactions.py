"""What one user did, as a list to page through."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, tuple_

from app.catalog.rows import find_users
from app.catalog.users import unknown
from app.storage import tables


def page(
    db: Connection, user_id: str, *, kind: str | None = None, after_seq: int | None = None, limit: int
) -> list[dict[str, Any]]:
    """Newest first, behind the interaction `after_seq`; each with its `seq`. Raises NotFound for an unknown user."""
    row = find_users(db, [user_id]).get(user_id)
    if row is None:
        raise unknown(user_id)
    past, items = tables.interactions, tables.items
    order = tuple_(past.c.timestamp, past.c.seq)
    statement = (
        select(
            past.c.seq, past.c.event_id, items.c.item_id, past.c.kind, past.c.value, past.c.timestamp,
            past.c.received_at, past.c.session_id, past.c.request_id,
        )
        .join(items, items.c.row == past.c.item_row)
        .where(past.c.user_row == row)
        .order_by(past.c.timestamp.desc(), past.c.seq.desc())
        .limit(limit)
    )  # fmt: skip
    if kind is not None:
        statement = statement.where(past.c.kind == kind)
    if after_seq is not None:
        last = select(past.c.timestamp, past.c.seq).where(past.c.seq == after_seq, past.c.user_row == row)
        statement = statement.where(order < last.scalar_subquery())
    return [dict(found) for found in db.execute(statement).mappings()]
