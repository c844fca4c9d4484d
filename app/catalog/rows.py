"""The integer row of a user or an item, given by Postgres once and for ever.

Rows are allocated for ids that a look-up found missing, and only for those: an upsert would burn a number of
the sequence per conflict. They are inserted in the order of their ids, so that two writers with overlapping ids
wait for one another and never in a circle. Call these under READ COMMITTED, Postgres' default: a writer that
lost the race for an id must see the winner's row.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

FIND_ITEMS = "SELECT item_id, row FROM items WHERE item_id = ANY(%(ids)s)"
FIND_USERS = "SELECT user_id, row FROM users WHERE user_id = ANY(%(ids)s)"
ADD_ITEMS = """
    INSERT INTO items (item_id) SELECT id FROM unnest(%(ids)s) WITH ORDINALITY AS missing(id, position)
    ORDER BY position ON CONFLICT (item_id) DO NOTHING RETURNING item_id, row
"""
ADD_USERS = """
    INSERT INTO users (user_id) SELECT id FROM unnest(%(ids)s) WITH ORDINALITY AS missing(id, position)
    ORDER BY position ON CONFLICT (user_id) DO NOTHING RETURNING user_id, row
"""


def find_items(db: Connection, item_ids: Sequence[str]) -> dict[str, int]:
    """The rows of those items that have one; deleted items keep theirs."""
    return _rows(db, FIND_ITEMS, item_ids)


def find_users(db: Connection, user_ids: Sequence[str]) -> dict[str, int]:
    """The rows of those users that have one."""
    return _rows(db, FIND_USERS, user_ids)


def allocate_items(db: Connection, item_ids: Sequence[str]) -> dict[str, int]:
    """The row of every item, given now to those that had none (as bare items without content)."""
    return _allocate(db, FIND_ITEMS, ADD_ITEMS, item_ids)


def allocate_users(db: Connection, user_ids: Sequence[str]) -> dict[str, int]:
    """The row of every user, given now to those that had none (as bare users without attributes)."""
    return _allocate(db, FIND_USERS, ADD_USERS, user_ids)


def _allocate(db: Connection, find: str, add: str, ids: Sequence[str]) -> dict[str, int]:
    found = _rows(db, find, ids)
    missing = sorted(set(ids).difference(found))
    if missing:
        found |= _rows(db, add, missing)
        lost_races = [id_ for id_ in missing if id_ not in found]
        found |= _rows(db, find, lost_races)
    return found


def _rows(db: Connection, statement: str, ids: Sequence[str]) -> dict[str, int]:
    if not ids:
        return {}
    return {id_: row for id_, row in db.exec_driver_sql(statement, {"ids": list(ids)})}
