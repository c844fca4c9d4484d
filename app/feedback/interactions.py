"""What one user did, and had on screen, as a list to page through."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Float, Select, false, literal, null, select, tuple_, union_all

from app.catalog.rows import find_users
from app.catalog.users import unknown
from app.storage import tables


def page(
    db: Connection, user_id: str, *, kind: str | None = None, after_seq: int | None = None, limit: int
) -> list[dict[str, Any]]:
    """Newest first, behind the one numbered `after_seq`; each with its `seq`. Raises NotFound for an unknown user."""
    row = find_users(db, [user_id]).get(user_id)
    if row is None:
        raise unknown(user_id)
    past, items = union_all(_done(row, kind), _on_screen(row, kind)).subquery(), tables.items
    order = tuple_(past.c.timestamp, past.c.seq)
    statement = (
        select(
            past.c.seq, past.c.event_id, items.c.item_id, past.c.kind, past.c.value, past.c.timestamp,
            past.c.received_at, past.c.session_id, past.c.request_id,
        )
        .join(items, items.c.row == past.c.item_row)
        .order_by(past.c.timestamp.desc(), past.c.seq.desc())
        .limit(limit)
    )  # fmt: skip
    if after_seq is not None:
        last = select(past.c.timestamp, past.c.seq).where(past.c.seq == after_seq)
        statement = statement.where(order < last.scalar_subquery())
    return [dict(found) for found in db.execute(statement).mappings()]


def _done(user_row: int, kind: str | None) -> Select[Any]:
    past = tables.interactions.c
    statement = select(
        past.seq, past.event_id, past.item_row, past.kind, past.value, past.timestamp, past.received_at,
        past.session_id, past.request_id,
    ).where(past.user_row == user_row)  # fmt: skip
    return statement if kind is None else statement.where(past.kind == kind)


def _on_screen(user_row: int, kind: str | None) -> Select[Any]:
    shown = tables.on_screen.c
    statement = select(
        shown.seq, shown.event_id, shown.item_row, literal("impression").label("kind"),
        null().cast(Float).label("value"), shown.timestamp, shown.received_at, shown.session_id, shown.request_id,
    ).where(shown.user_row == user_row)  # fmt: skip
    return statement if kind in {None, "impression"} else statement.where(false())
