"""Writes events to Postgres in the caller's transaction: each id once, likes kept in step, erased users left out.

Everything is locked in one order, new users and items, then users who decide, event ids and likes, each sorted, so that
writers with overlapping events wait for one another and never in a circle. An attempt that finds that something has to
be made first lets go of the users that it locked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

import orjson
from sqlalchemy import Connection

from app.catalog import rows
from app.errors import FieldError, Invalid
from app.feedback.events import Event, Receipt
from app.feedback.known_rows import KnownRows

LIKE_KINDS = frozenset({"like", "unlike", "dislike", "hide"})
"""What decides whether an item is among the user's likes; the latest of them does."""

# Ids that STORE has not found to be known and alive are looked up with this. One statement, for each costs a round trip
# and a plan. The columns: what it is, its id, its row, since when.
LOOK_UP = """
SELECT 'user', user_id, row, NULL::timestamptz FROM users WHERE user_id = ANY(%(users)s)
UNION ALL SELECT 'item', item_id, row, NULL FROM items WHERE item_id = ANY(%(items)s)
UNION ALL SELECT 'erased', id, NULL, erased_at
    FROM unnest(%(users)s) AS id JOIN tombstones ON user_hash = sha256(convert_to(id, 'UTF8'))
UNION ALL SELECT 'floor', what, NULL, kept_from FROM retention_floors
"""
LOCK_USERS = "SELECT FROM users WHERE row = ANY(%(rows)s) ORDER BY row FOR NO KEY UPDATE"

_KINDS = ", ".join(f"'{kind}'" for kind in sorted(LIKE_KINDS))
# OFFSET 0: looked up pair by pair, also by a plan that was made when there were no interactions yet. So are the likes
# that end, of which a join would read all there are; nobody else touches them, for their users are locked.
_PAST_DECISIONS = f"""
    SELECT past.* FROM pair CROSS JOIN LATERAL (
        SELECT user_row, item_row, kind, least("timestamp", received_at) AS at, seq FROM interactions
        WHERE user_row = pair.user_row AND item_row = pair.item_row AND kind IN ({_KINDS}) OFFSET 0
    ) AS past
"""  # noqa: S608 - constants, here and below
_LIKES = """
latest AS MATERIALIZED (
    SELECT DISTINCT ON (user_row, item_row) user_row, item_row, kind, at FROM decision
    ORDER BY user_row, item_row, at DESC, seq DESC
), removed AS (
    DELETE FROM likes USING (
        SELECT found.* FROM latest CROSS JOIN LATERAL (
            SELECT likes.ctid FROM likes WHERE user_row = latest.user_row AND item_row = latest.item_row OFFSET 0
        ) AS found WHERE latest.kind <> 'like'
    ) AS ended WHERE likes.ctid = ended.ctid
), liked AS (
    INSERT INTO likes (user_row, item_row, liked_at)
    SELECT user_row, item_row, at FROM latest WHERE kind = 'like'
    ON CONFLICT (user_row, item_row) DO UPDATE SET liked_at = excluded.liked_at
)
"""
FOLLOW_LIKES = f"""
WITH pair AS (
    SELECT DISTINCT user_row, item_row FROM unnest(%(users)s::int[], %(items)s::int[]) AS pair (user_row, item_row)
), decision AS ({_PAST_DECISIONS}), {_LIKES}
SELECT
"""  # noqa: S608
# Planning this takes as long as storing 20 events, so it is prepared once per connection. A subquery for each user and
# item is always an index scan per event, whatever the tables' statistics say; none where the row is given. $2: the
# caller has settled what is odd; else nothing is stored where an id is unknown, a user has a tombstone, an event is
# older than those that are kept, or the rows that are given are not of the version in force. $3: that version; empty
# where no row is given.
_STORE = f"""
WITH given AS MATERIALIZED (
    SELECT * FROM ROWS FROM (json_to_recordset($1) AS (
        event_id text, user_id text, item_id text, user_row int, item_row int, kind text, value float8,
        "timestamp" timestamptz, session_id text, request_id text)) WITH ORDINALITY AS given
), event AS MATERIALIZED (
    SELECT event_id, user_id, item_id, kind, value, "timestamp", session_id, request_id, ordinality,
        coalesce("timestamp", now()) AS at,
        coalesce(user_row, (SELECT row FROM users WHERE users.user_id = given.user_id)) AS user_row,
        coalesce(item_row, (SELECT row FROM items WHERE items.item_id = given.item_id)) AS item_row,
        user_row IS NULL
            AND EXISTS (SELECT FROM tombstones WHERE user_hash = sha256(convert_to(given.user_id, 'UTF8'))) AS erased
    FROM given
), version AS MATERIALIZED (
    SELECT epoch || ':' || seq AS of_rows FROM versions WHERE name = 'deletions'
), odd AS MATERIALIZED (
    SELECT NOT $2 AND ($3 NOT IN ('', (SELECT of_rows FROM version)) OR
        coalesce(bool_or(user_row IS NULL OR item_row IS NULL OR erased OR "timestamp" < CASE kind
        WHEN 'impression' THEN (SELECT kept_from FROM retention_floors WHERE what = 'on_screen')
        ELSE (SELECT kept_from FROM retention_floors WHERE what = 'events') END), false)) AS is_so FROM event
), fresh AS (
    INSERT INTO event_ids (event_id) SELECT event_id FROM event WHERE NOT (SELECT is_so FROM odd)
    ORDER BY event_id COLLATE "C" ON CONFLICT DO NOTHING RETURNING event_id
), numbered AS MATERIALIZED (
    SELECT nextval('interactions_seq_seq') AS seq, new.*
    FROM (SELECT * FROM event WHERE event_id IN (SELECT event_id FROM fresh) ORDER BY ordinality) AS new
), stored AS (
    INSERT INTO interactions (seq, event_id, user_row, item_row, kind, value, "timestamp", session_id, request_id)
    SELECT seq, event_id, user_row, item_row, kind, value, at, session_id, request_id
    FROM numbered WHERE kind <> 'impression'
    RETURNING seq, user_row, item_row, kind, least("timestamp", received_at) AS at
), looked_at AS (
    INSERT INTO on_screen (seq, event_id, user_row, item_row, "timestamp", session_id, request_id)
    SELECT seq, event_id, user_row, item_row, at, session_id, request_id FROM numbered WHERE kind = 'impression'
), pair AS (
    SELECT DISTINCT user_row, item_row FROM stored WHERE kind IN ({_KINDS})
), decision AS (
    SELECT user_row, item_row, kind, at, seq FROM stored WHERE kind IN ({_KINDS}) UNION ALL {_PAST_DECISIONS}
), {_LIKES}
SELECT (SELECT is_so FROM odd) AS odd, pg_current_xact_id()::text AS watermark,
    (SELECT json_agg(event_id) FROM event WHERE event_id NOT IN (SELECT event_id FROM fresh)) AS duplicates,
    (SELECT of_rows FROM version) AS version,
    (SELECT json_agg(json_build_array(user_id, user_row, item_id, item_row)) FROM event
     WHERE user_id IS NOT NULL OR item_id IS NOT NULL) AS looked_up
"""  # noqa: S608
_PREPARE = f"""
PREPARE segue_lock_deciding (text[]) AS
    SELECT FROM users WHERE user_id = ANY($1) ORDER BY row FOR NO KEY UPDATE;
PREPARE segue_store (json, bool, text) AS {_STORE}
"""
# The plan must not be one for tables that were small when it was made: it is kept for as long as the connection.
_ALWAYS_BY_INDEX = "SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off;"
_LOCK_DECIDING = "SAVEPOINT attempt; EXECUTE segue_lock_deciding (%(deciding)s);"
_LET_GO = "ROLLBACK TO attempt"
_EXECUTE = "EXECUTE segue_store (%(events)s, %(settled)s, %(version)s)"


class _Stored(NamedTuple):
    """What became of a group of events.

    odd: nothing was stored, for an id is unknown, a user was erased, or an event is too old. fresh: the ids that were
    not stored before.
    """

    odd: bool
    fresh: set[str]
    watermark: str


class _Known(NamedTuple):
    """What the database knows of the ids in a group of requests, and from when on it keeps events."""

    users: dict[str, int]
    items: dict[str, int]
    erased: dict[str, datetime]
    floors: dict[str, datetime]

    def drops(self, event: Event) -> bool:
        """Whether the event belongs to a life of its user that was erased (see catalog.users)."""
        if event.user_id not in self.erased:
            return False
        if event.user_id not in self.users:
            return True
        return event.timestamp is not None and event.timestamp <= self.erased[event.user_id]

    def leaves_out(self, event: Event) -> bool:
        """Whether it is dropped, or so old that it may have been stored and pruned: then it counts as a duplicate."""
        floor = self.floors.get("on_screen" if event.kind == "impression" else "events")
        is_too_old = floor is not None and event.timestamp is not None and event.timestamp < floor
        return is_too_old or self.drops(event)


def store(
    db: Connection, requests: Sequence[Sequence[Event]], *, auto_create: bool, gone: set[str] | None = None
) -> list[Receipt | Invalid]:
    """Stores the events of all requests; one outcome per request, in order.

    gone: is told the users who were erased and of whom nothing is stored.

    auto_create: users and items that nobody has named before are created; otherwise a request naming one is
    Invalid, with `errors` at (index of the event, field), and stores nothing. An event on a deleted item is
    stored, and the item stays deleted. Sent to Postgres under a lock that `dirty_marks` takes.

    Once per transaction: a second call would remember the rows that the first one made, also if both are rolled back.
    """
    stored = _insert(db, _first_of_each(chain.from_iterable(requests)), settled=False)
    if stored.odd:
        return _store_odd(db, requests, auto_create=auto_create, gone=set() if gone is None else gone)
    return [_receipt(events, stored) for events in requests]


def _store_odd(
    db: Connection, requests: Sequence[Sequence[Event]], *, auto_create: bool, gone: set[str]
) -> list[Receipt | Invalid]:
    """`store` where some ids are new, some users were erased or some events are too old."""
    known = _look_up(db, requests)
    refused: dict[int, Invalid] = {}
    if auto_create:
        _allocate(db, known, _kept(requests, known))
    else:
        refused = {n: error for n, events in enumerate(requests) if (error := _unknown(events, known))}
    gone |= known.erased.keys() - known.users.keys()
    kept = _kept([events for n, events in enumerate(requests) if n not in refused], known)
    stored = _insert(db, _first_of_each(kept), settled=True)
    return [refused[n] if n in refused else _receipt(events, stored, known) for n, events in enumerate(requests)]


def _look_up(db: Connection, requests: Sequence[Sequence[Event]]) -> _Known:
    user_ids = {event.user_id for events in requests for event in events}
    item_ids = {event.item_id for events in requests for event in events}
    if not user_ids:
        return _Known({}, {}, {}, {})
    known = _Known({}, {}, {}, {})
    for what, id_, row, at in db.exec_driver_sql(LOOK_UP, {"users": list(user_ids), "items": list(item_ids)}):
        match what:
            case "user":
                known.users[id_] = row
            case "item":
                known.items[id_] = row
            case "erased":
                known.erased[id_] = at
            case _:
                known.floors[id_] = at
    return known


def _allocate(db: Connection, known: _Known, events: Collection[Event]) -> None:
    new_users = {event.user_id for event in events}.difference(known.users)
    new_items = {event.item_id for event in events}.difference(known.items)
    known.users.update(rows.allocate_users(db, list(new_users)))
    known.items.update(rows.allocate_items(db, list(new_items)))


def _unknown(events: Iterable[Event], known: _Known) -> Invalid | None:
    errors = []
    for index, event in enumerate(events):
        if known.leaves_out(event):
            continue
        if event.user_id not in known.users:
            errors.append(FieldError((index, "user_id"), f"there is no user {event.user_id!r}"))
        if event.item_id not in known.items:
            errors.append(FieldError((index, "item_id"), f"there is no item {event.item_id!r}"))
    if not errors:
        return None
    return Invalid("events name users or items that do not exist, and auto_create is off", errors=errors)


def _kept(requests: Iterable[Iterable[Event]], known: _Known) -> list[Event]:
    return [event for events in requests for event in events if not known.leaves_out(event)]


def _first_of_each(events: Iterable[Event]) -> list[Event]:
    first: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.event_id, event)
    return list(first.values())


def _insert(db: Connection, events: Collection[Event], *, settled: bool) -> _Stored:
    """settled: every id is known by now, and the events are those to keep; otherwise they may prove odd."""
    known: KnownRows = db.info.setdefault("segue_rows", KnownRows())
    if "segue_store" not in db.info:
        db.exec_driver_sql(_PREPARE)
        db.info["segue_store"] = "prepared"
    # What this transaction makes, it may also take back.
    given = KnownRows() if settled else known
    deciding = {event.user_id for event in events if event.kind in LIKE_KINDS}
    # One trip to the server for all of it; what is answered is the last statement's.
    statements = f"{_ALWAYS_BY_INDEX} {_LOCK_DECIDING if deciding else ''} {_EXECUTE}"
    parameters = {
        "events": _as_json(events, given),
        "settled": settled,
        "version": given.version,
        "deciding": list(deciding),
    }
    answer = db.exec_driver_sql(statements, parameters).one()
    if deciding and answer.odd:
        db.exec_driver_sql(_LET_GO)
    if given.version not in {"", answer.version}:
        known.forget()
        return _insert(db, events, settled=settled)
    if not (settled or answer.odd):
        known.learn(answer.version, answer.looked_up or ())
    fresh = {event.event_id for event in events}.difference(answer.duplicates or ())
    return _Stored(answer.odd, fresh, answer.watermark)


def lock_users(db: Connection, users: Collection[int]) -> None:
    """Two writers on the likes of one user take turns from here, so that each decides on all events before it."""
    if users:
        db.exec_driver_sql(LOCK_USERS, {"rows": sorted(users)})


def follow_likes(db: Connection, pairs: Collection[tuple[int, int]]) -> None:
    """Brings `likes` in step with the events on these pairs of a user's and an item's row; the users are locked."""
    if pairs:
        users, items = zip(*sorted(pairs), strict=True)
        db.exec_driver_sql(FOLLOW_LIKES, {"users": list(users), "items": list(items)})


def _as_json(events: Iterable[Event], known: KnownRows) -> str:
    # One JSON text costs half of what eight arrays cost to send, and little more to read.
    return orjson.dumps([_record(event, known) for event in events]).decode()


def _record(event: Event, known: KnownRows) -> dict[str, object]:
    """What is null, or known by its row, is left out: each field costs Postgres 0.4 µs to read."""
    record: dict[str, object] = {"event_id": event.event_id, "kind": event.kind, "timestamp": event.timestamp}
    if (row := known.users.get(event.user_id)) is None:
        record["user_id"] = event.user_id
    else:
        record["user_row"] = row
    if (row := known.items.get(event.item_id)) is None:
        record["item_id"] = event.item_id
    else:
        record["item_row"] = row
    if event.value is not None:
        record["value"] = event.value
    if event.session_id is not None:
        record["session_id"] = event.session_id
    if event.request_id is not None:
        record["request_id"] = event.request_id
    return record


def _receipt(events: Sequence[Event], stored: _Stored, known: _Known | None = None) -> Receipt:
    """Takes the ids it counts as accepted out of `fresh`, so that a second request counts duplicates."""
    accepted = 0
    for event in events:
        if known is not None and known.drops(event):
            accepted += 1
        elif event.event_id in stored.fresh:
            stored.fresh.remove(event.event_id)
            accepted += 1
    return Receipt(accepted, len(events) - accepted, stored.watermark)
