"""Writes events to Postgres in the caller's transaction: each id once, likes kept in step, erased users left out.

Everything is locked in one order, users before items before event ids before likes, each sorted, so that writers
with overlapping events wait for one another and never in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import orjson
from sqlalchemy import Connection

from app.catalog import rows
from app.errors import FieldError, Invalid
from app.feedback.events import Event, Receipt

LIKE_KINDS = frozenset({"like", "unlike", "dislike", "hide"})
"""What decides whether an item is among the user's likes; the latest of them does."""

# One statement, for each costs a round trip and a plan. The columns: what it is, its id, its row, since when.
LOOK_UP = """
SELECT 'user', user_id, row, NULL::timestamptz FROM users WHERE user_id = ANY(%(users)s)
UNION ALL SELECT 'item', item_id, row, NULL FROM items WHERE item_id = ANY(%(items)s)
UNION ALL SELECT 'erased', id, NULL, erased_at
    FROM unnest(%(users)s) AS id JOIN tombstones ON user_hash = sha256(convert_to(id, 'UTF8'))
"""
INSERT = """
WITH event AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(events)s) AS event (
        n int, event_id text, user_row int, item_row int, kind text, value float8, "timestamp" timestamptz,
        session_id text, request_id text)
), fresh AS (
    INSERT INTO event_ids (event_id) SELECT event_id FROM event ORDER BY event_id COLLATE "C"
    ON CONFLICT DO NOTHING RETURNING event_id
), stored AS (
    INSERT INTO interactions
        (event_id, user_row, item_row, kind, value, "timestamp", session_id, request_id)
    SELECT event_id, user_row, item_row, kind, value, coalesce("timestamp", now()), session_id, request_id
    FROM event WHERE event_id IN (SELECT event_id FROM fresh) AND kind <> 'impression'
    ORDER BY n
), looked_at AS (
    INSERT INTO on_screen (seq, event_id, user_row, item_row, "timestamp", session_id, request_id)
    SELECT nextval('interactions_seq_seq'), event_id, user_row, item_row, coalesce("timestamp", now()), session_id,
        request_id
    FROM event WHERE event_id IN (SELECT event_id FROM fresh) AND kind = 'impression'
    ORDER BY n
)
SELECT coalesce((SELECT json_agg(event_id) FROM fresh), '[]'), pg_current_xact_id()::text
"""
LOCK_USERS = "SELECT FROM users WHERE row = ANY(%(rows)s) ORDER BY row FOR NO KEY UPDATE"
FOLLOW_LIKES = """
WITH pair AS (
    SELECT DISTINCT user_row, item_row FROM unnest(%(users)s::int[], %(items)s::int[]) AS pair (user_row, item_row)
), latest AS MATERIALIZED (
    SELECT pair.*, decision.kind, decision.at
    FROM pair CROSS JOIN LATERAL (
        SELECT kind, least("timestamp", received_at) AS at
        FROM interactions AS past
        WHERE past.user_row = pair.user_row AND past.item_row = pair.item_row AND kind = ANY(%(kinds)s)
        ORDER BY least("timestamp", received_at) DESC, seq DESC LIMIT 1
    ) AS decision
), removed AS (
    DELETE FROM likes USING latest
    WHERE likes.user_row = latest.user_row AND likes.item_row = latest.item_row AND latest.kind <> 'like'
)
INSERT INTO likes (user_row, item_row, liked_at)
SELECT user_row, item_row, at FROM latest WHERE kind = 'like'
ON CONFLICT (user_row, item_row) DO UPDATE SET liked_at = excluded.liked_at
"""


class _Known(NamedTuple):
    """What the database knows of the ids in a group of requests."""

    users: dict[str, int]
    items: dict[str, int]
    erased: dict[str, datetime]

    def drops(self, event: Event) -> bool:
        """Whether the event belongs to a life of its user that was erased (see catalog.users)."""
        if event.user_id not in self.erased:
            return False
        if event.user_id not in self.users:
            return True
        return event.timestamp is not None and event.timestamp <= self.erased[event.user_id]


def store(db: Connection, requests: Sequence[Sequence[Event]], *, auto_create: bool) -> list[Receipt | Invalid]:
    """Stores the events of all requests; one outcome per request, in order.

    auto_create: users and items that nobody has named before are created; otherwise a request naming one is
    Invalid, with `errors` at (index of the event, field), and stores nothing. An event on a deleted item is
    stored, and the item stays deleted. Sent to Postgres under a lock that `dirty_marks` takes.
    """
    known = _look_up(db, requests)
    refused: dict[int, Invalid] = {}
    if auto_create:
        _allocate(db, known, _kept(requests, known))
    else:
        refused = {n: error for n, events in enumerate(requests) if (error := _unknown(events, known))}
    stored_requests = [events for n, events in enumerate(requests) if n not in refused]
    fresh, watermark = _insert(db, _first_of_each(_kept(stored_requests, known)), known)
    return [
        refused[n] if n in refused else _receipt(events, known, fresh, watermark) for n, events in enumerate(requests)
    ]


def _look_up(db: Connection, requests: Sequence[Sequence[Event]]) -> _Known:
    user_ids = {event.user_id for events in requests for event in events}
    item_ids = {event.item_id for events in requests for event in events}
    if not user_ids:
        return _Known({}, {}, {})
    known = _Known({}, {}, {})
    for what, id_, row, erased_at in db.exec_driver_sql(LOOK_UP, {"users": list(user_ids), "items": list(item_ids)}):
        match what:
            case "user":
                known.users[id_] = row
            case "item":
                known.items[id_] = row
            case _:
                known.erased[id_] = erased_at
    return known


def _allocate(db: Connection, known: _Known, events: Collection[Event]) -> None:
    new_users = {event.user_id for event in events}.difference(known.users)
    new_items = {event.item_id for event in events}.difference(known.items)
    known.users.update(rows.allocate_users(db, list(new_users)))
    known.items.update(rows.allocate_items(db, list(new_items)))


def _unknown(events: Iterable[Event], known: _Known) -> Invalid | None:
    errors = []
    for index, event in enumerate(events):
        if known.drops(event):
            continue
        if event.user_id not in known.users:
            errors.append(FieldError((index, "user_id"), f"there is no user {event.user_id!r}"))
        if event.item_id not in known.items:
            errors.append(FieldError((index, "item_id"), f"there is no item {event.item_id!r}"))
    if not errors:
        return None
    return Invalid("events name users or items that do not exist, and auto_create is off", errors=errors)


def _kept(requests: Iterable[Iterable[Event]], known: _Known) -> list[Event]:
    if not known.erased:
        return [event for events in requests for event in events]
    return [event for events in requests for event in events if not known.drops(event)]


def _first_of_each(events: Iterable[Event]) -> list[Event]:
    first: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.event_id, event)
    return list(first.values())


def _insert(db: Connection, events: Sequence[Event], known: _Known) -> tuple[set[str], str]:
    """The ids that were not stored before, and the id of the transaction."""
    deciding = [event for event in events if event.kind in LIKE_KINDS]
    lock_users(db, {known.users[event.user_id] for event in deciding})
    ids, watermark = db.exec_driver_sql(INSERT, {"events": _as_json(events, known)}).one()
    fresh = set(ids)
    follow_likes(
        db,
        {(known.users[event.user_id], known.items[event.item_id]) for event in deciding if event.event_id in fresh},
    )
    return fresh, watermark


def lock_users(db: Connection, users: Collection[int]) -> None:
    """Two writers on the likes of one user take turns from here, so that each decides on all events before it."""
    if users:
        db.exec_driver_sql(LOCK_USERS, {"rows": sorted(users)})


def follow_likes(db: Connection, pairs: Collection[tuple[int, int]]) -> None:
    """Brings `likes` in step with the events on these pairs of a user's and an item's row; the users are locked."""
    if pairs:
        users, items = zip(*sorted(pairs), strict=True)
        parameters = {"users": list(users), "items": list(items), "kinds": sorted(LIKE_KINDS)}
        db.exec_driver_sql(FOLLOW_LIKES, parameters)


def _as_json(events: Sequence[Event], known: _Known) -> str:
    # One JSON text costs half of what eight arrays cost to send, and no more to read.
    records = [
        {
            "n": n,
            "event_id": event.event_id,
            "user_row": known.users[event.user_id],
            "item_row": known.items[event.item_id],
            "kind": event.kind,
            "value": event.value,
            "timestamp": event.timestamp,
            "session_id": event.session_id,
            "request_id": event.request_id,
        }
        for n, event in enumerate(events)
    ]
    return orjson.dumps(records).decode()


def _receipt(events: Sequence[Event], known: _Known, unclaimed: set[str], watermark: str) -> Receipt:
    """Takes the ids it counts as accepted out of `unclaimed`, so that a second request counts duplicates."""
    accepted = 0
    for event in events:
        if known.drops(event):
            accepted += 1
        elif event.event_id in unclaimed:
            unclaimed.remove(event.event_id)
            accepted += 1
    return Receipt(accepted, len(events) - accepted, watermark)
