"""Users as the catalogue knows them: attributes, preferred categories, and whether they were erased.

Who writes here also says so to the user's cached view: `feedback.dirty_marks.ViewWriter.changing` is the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import orjson
from sqlalchemy import Connection, func, select, update

from app.catalog import rows
from app.errors import NotFound
from app.storage import tables

COLUMNS = (
    tables.users.c.user_id, tables.users.c.attributes, tables.users.c.preferred_categories,
    tables.users.c.created_at, tables.users.c.updated_at,
)  # fmt: skip
LOCK = "SELECT FROM users WHERE user_id = ANY(%(ids)s) ORDER BY row FOR NO KEY UPDATE"
REPLACE = """
    UPDATE users SET attributes = new.attributes, preferred_categories = new.preferred_categories, updated_at = now()
    FROM json_to_recordset(%(users)s) AS new (user_id text, attributes jsonb, preferred_categories text[])
    WHERE users.user_id = new.user_id
"""


@dataclass(frozen=True, slots=True)
class User:
    """What is known of a user apart from what the user did."""

    user_id: str
    attributes: Mapping[str, Any]
    preferred_categories: Sequence[str]


def put(db: Connection, users: Sequence[User]) -> int:
    """Creates or replaces these users, each named once; how many are new.

    A user who was erased is created anew: whoever puts a user on purpose may. What such a user did before the
    erasure stays forgotten (see `erased_at`).
    """
    ids = [user.user_id for user in users]
    known = rows.find_users(db, ids)
    rows.allocate_users(db, ids)
    db.exec_driver_sql(LOCK, {"ids": ids})
    db.exec_driver_sql(REPLACE, {"users": orjson.dumps([asdict(user) for user in users]).decode()})
    return len(ids) - len(known)


def patch(db: Connection, user_id: str, changes: Mapping[str, Any]) -> None:
    """Replaces the given columns. Raises NotFound."""
    statement = (
        update(tables.users)
        .where(tables.users.c.user_id == user_id)
        .values({**changes, "updated_at": func.now()})
        .returning(tables.users.c.row)
    )
    if db.execute(statement).one_or_none() is None:
        raise unknown(user_id)


def get(db: Connection, user_id: str) -> dict[str, Any]:
    """The user as it is stored. Raises NotFound."""
    found = db.execute(select(*COLUMNS).where(tables.users.c.user_id == user_id)).mappings().one_or_none()
    if found is None:
        raise unknown(user_id)
    return dict(found)


def page(db: Connection, *, after_row: int, limit: int) -> list[dict[str, Any]]:
    """Users in the order of their rows, behind `after_row` (-1: from the first); each with its `row`."""
    users = tables.users
    statement = select(users.c.row, *COLUMNS).where(users.c.row > after_row).order_by(users.c.row).limit(limit)
    return [dict(found) for found in db.execute(statement).mappings()]


def unknown(user_id: str) -> NotFound:
    return NotFound(f"user {user_id!r} does not exist")


def hash_of(user_id: str) -> bytes:
    """What a tombstone keeps of an erased user's id."""
    return sha256(user_id.encode()).digest()


def erased_at(db: Connection, user_ids: Sequence[str]) -> dict[str, datetime]:
    """When each of these users was erased, for those who were.

    The tombstone stays for good, also where the user was created anew on purpose: what such a user did before that
    moment never comes back, and without a row in `users` nothing about the user is stored at all.
    """
    by_hash = {hash_of(user_id): user_id for user_id in user_ids}
    statement = "SELECT user_hash, erased_at FROM tombstones WHERE user_hash = ANY(%(hashes)s)"
    found = db.exec_driver_sql(statement, {"hashes": list(by_hash)})
    return {by_hash[bytes(user_hash)]: at for user_hash, at in found}
