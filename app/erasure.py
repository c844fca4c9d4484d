"""A user forgotten everywhere, and all that is known of a user, to be given back first.

Every table that names users stands in ERASE and, unless it says why not, in EXPORT; a test compares them with the
schema, so a new table with a user in it (sessions, exposures) can't be forgotten here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from redis import Redis
from sqlalchemy import Connection, Engine

from app.catalog import versions
from app.catalog.rows import find_users
from app.catalog.users import COLUMNS, erased_at, hash_of, unknown
from app.feedback.cached_keys import delete_keys_of_erased
from app.feedback.dirty_marks import ERASURE_LOCK, ViewWriter
from app.feedback.session_export import KeptSession
from app.storage import tables

# In this order, for rows refer to those below them.
ERASE = {
    "likes": "DELETE FROM likes WHERE user_row = %(row)s",
    "event_ids": """
        DELETE FROM event_ids USING (
            SELECT event_id FROM interactions WHERE user_row = %(row)s
            UNION ALL SELECT event_id FROM on_screen WHERE user_row = %(row)s
        ) AS past WHERE event_ids.event_id = past.event_id
    """,
    # The live signals have counted them: kept for an hour, under a row that is nobody's then, to be taken out again.
    "interactions": """
        WITH gone AS (DELETE FROM interactions WHERE user_row = %(row)s RETURNING *)
        INSERT INTO retractions (seq, user_row, item_row, kind, value, "timestamp", received_at, stored_xid)
        SELECT seq, user_row, item_row, kind, value, "timestamp", received_at, xid FROM gone
    """,
    "on_screen": "DELETE FROM on_screen WHERE user_row = %(row)s",
    "impressions": "DELETE FROM impressions WHERE user_id = %(user_id)s",
    "exposures": "DELETE FROM exposures WHERE user_id = %(user_id)s",
    "blocks": "DELETE FROM blocks WHERE user_id = %(user_id)s",
    # The experiment stays, without the variant that was meant for this user.
    "experiments": """
        UPDATE experiments SET definition = definition #- ARRAY['forced', %(user_id)s]
        WHERE jsonb_exists(definition -> 'forced', %(user_id)s)
    """,
    # The line stays, without the name, and without the words on why an item was kept from this user.
    "audit_entries": """
        UPDATE audit_log SET subject = CASE WHEN subject = 'user:' || %(user_id)s THEN 'user:(erased)' ELSE subject END,
            before = CASE WHEN before ->> 'user_id' = %(user_id)s THEN before || kept.words
                WHEN jsonb_exists(before -> 'forced', %(user_id)s)
                    THEN before #- ARRAY['forced', %(user_id)s] ELSE before END,
            after = CASE WHEN after ->> 'user_id' = %(user_id)s THEN after || kept.words
                WHEN jsonb_exists(after -> 'forced', %(user_id)s)
                    THEN after #- ARRAY['forced', %(user_id)s] ELSE after END
        FROM (VALUES ('{"user_id": "(erased)", "reason": "(erased)"}'::jsonb)) AS kept (words)
        WHERE subject = 'user:' || %(user_id)s OR %(user_id)s IN (before ->> 'user_id', after ->> 'user_id')
            OR jsonb_exists(before -> 'forced', %(user_id)s) OR jsonb_exists(after -> 'forced', %(user_id)s)
    """,
    "users": "DELETE FROM users WHERE row = %(row)s",
}
BURY = """
    INSERT INTO tombstones (user_hash, erased_at) VALUES (%(hash)s, clock_timestamp())
    ON CONFLICT (user_hash) DO UPDATE SET erased_at = excluded.erased_at, forgotten_at = NULL
"""
# Whoever starts an experiment again copies its definition, and with it the name: not meanwhile.
HOLD_EXPERIMENTS = "SELECT FROM versions WHERE name = 'experiments' FOR UPDATE"
UNDER_WAY_SECONDS = 30
"""So long after an erasure an answer that read the user before it may write: slates are pinned late. After the first
sweep of Redis too, for slates wait while it is away. Not covered: a process that stood still for longer, or that
reaches Redis later than the one that sweeps. What such a one pins can't be used, and expires within the hour."""
LATE_DAYS = 7
"""Older erasures are not looked at a second time: an upgrade has thousands of them, and whatever was pinned late has
long expired."""
HASHES_PER_BATCH = 200
# In three steps, told by `forgotten_at`: null, not in Redis yet; a time, when Redis was swept first; infinity, done.
TO_FORGET = """
    SELECT user_hash, erased_at, forgotten_at IS NULL AS is_first,
        erased_at BETWEEN now() - make_interval(days => %(days)s) AND now() - under_way AS may_have_rows
    FROM tombstones, make_interval(secs => %(seconds)s) AS under_way
    WHERE forgotten_at IS NULL OR (
        greatest(forgotten_at, erased_at) < now() - under_way AND erased_at > now() - make_interval(days => %(days)s)
    ) ORDER BY erased_at
"""
# An answer that read the user before the erasure, and was given after it, is shown and exposed after it. Who came back
# on purpose has a row again. The outer bounds are of the whole batch: few rows are left to take a hash of.
WRITTEN_LATE = tuple(
    f"""
    DELETE FROM {table} AS late
    USING unnest(%(hashes)s::bytea[], %(times)s::timestamptz[]) AS erased (user_hash, at)
    WHERE {at} BETWEEN %(since)s AND %(until)s
        AND {at} BETWEEN erased.at AND erased.at + make_interval(secs => %(seconds)s)
        AND sha256(convert_to(user_id, 'UTF8')) = erased.user_hash
        AND NOT EXISTS (SELECT FROM users WHERE users.user_id = late.user_id)
    """  # noqa: S608 - two tables of ours
    for table, at in (("impressions", "shown_at"), ("exposures", "exposed_at"))
)
# Unless the user was erased once more meanwhile.
FORGOTTEN = """
    UPDATE tombstones SET forgotten_at = %(step)s
    FROM unnest(%(hashes)s::bytea[], %(times)s::timestamptz[]) AS done (user_hash, at)
    WHERE tombstones.user_hash = done.user_hash AND erased_at = done.at
"""
SWEPT = "UPDATE tombstones SET forgotten_at = now() WHERE user_hash = %(hash)s"


def erase_user(engine: Engine, views: ViewWriter, user_id: str) -> dict[str, int]:
    """Forgets the user in one transaction; how many rows of each kind were erased, all 0 for an unknown user.

    A tombstone (a hash of the id) stays: events of the user that are under way or sent again are acknowledged and
    dropped. Then every key in Redis that names the user goes; where Redis is away, `forget_late` does it. The caller
    publishes the versions afterwards. Raises OutcomeUnknown where Postgres did not confirm; erasing
    again is harmless.
    """
    with engine.connect() as db, views.changing(db, [user_id], alone=True):
        # -1 is nobody's row: an unknown user may still have been shown things.
        row = find_users(db, [user_id]).get(user_id, -1)
        db.exec_driver_sql(BURY, {"hash": hash_of(user_id)})
        db.exec_driver_sql(HOLD_EXPERIMENTS)
        parameters = {"row": row, "user_id": user_id}
        erased = {what: db.exec_driver_sql(statement, parameters).rowcount for what, statement in ERASE.items()}
        versions.bump(db, "deletions")
        if erased["blocks"]:
            versions.bump(db, "rules")
        if erased["experiments"]:
            versions.bump(db, "experiments")
    if views.forget(user_id):
        with engine.begin() as db:
            db.exec_driver_sql(SWEPT, {"hash": hash_of(user_id)})
    return erased


class _Late(NamedTuple):
    """A row of TO_FORGET."""

    user_hash: bytes
    erased_at: datetime
    is_first: bool
    may_have_rows: bool


def forget_late(engine: Engine, cache: Redis) -> int:
    """Takes out of Redis what an erasure could not, for Redis was away or the process died; and what answers that were
    under way wrote after it, there and in Postgres: once more `UNDER_WAY_SECONDS` after it. For how many users.

    Who came back on purpose by that second time keeps what is there. Raises RedisError or DBAPIError: where one of the
    two servers fails, the other has done its part, and what is left is done by the next call.
    """
    with engine.connect() as db:
        found = db.exec_driver_sql(TO_FORGET, {"seconds": UNDER_WAY_SECONDS, "days": LATE_DAYS})
        waiting = [_Late(bytes(row.user_hash), row.erased_at, row.is_first, row.may_have_rows) for row in found]
    if not waiting:
        return 0
    try:
        _sweep(engine, cache, waiting)
    finally:
        _delete_written_late(engine, [each for each in waiting if each.may_have_rows])
    _note(engine, [each for each in waiting if not each.is_first], "infinity")
    return len(waiting)


def _sweep(engine: Engine, cache: Redis, waiting: Sequence[_Late]) -> None:
    first = [each for each in waiting if each.is_first]
    # Of these there may be keys from before the erasure.
    never_swept = {each.user_hash for each in first}

    def who_are_back(user_ids: Collection[str]) -> set[str]:
        with engine.connect() as db:
            return {user_id for user_id in find_users(db, list(user_ids)) if hash_of(user_id) not in never_swept}

    delete_keys_of_erased(cache, {each.user_hash for each in waiting}, but_of=who_are_back)
    _note(engine, first, "now")


def _delete_written_late(engine: Engine, erased: Sequence[_Late]) -> None:
    for start in range(0, len(erased), HASHES_PER_BATCH):
        some = erased[start : start + HASHES_PER_BATCH]
        until = some[-1].erased_at + timedelta(seconds=UNDER_WAY_SECONDS)
        bounds = {"since": some[0].erased_at, "until": until, "seconds": UNDER_WAY_SECONDS}
        with engine.begin() as db:
            for statement in WRITTEN_LATE:
                db.exec_driver_sql(statement, _hashes_and_times(some) | bounds)


def _note(engine: Engine, done: Sequence[_Late], step: str) -> None:
    """step: "now" or "infinity"."""
    if done:
        with engine.begin() as db:
            db.exec_driver_sql(FORGOTTEN, _hashes_and_times(done) | {"step": step})


def _hashes_and_times(erased: Sequence[Tombstone | _Late]) -> dict[str, Any]:
    return {"hashes": [each.user_hash for each in erased], "times": [each.erased_at for each in erased]}


@dataclass(frozen=True, slots=True)
class Tombstone:
    """That a user was erased, and when; of the user's id only `hash_of` it."""

    user_hash: bytes
    erased_at: datetime


def tombstones(db: Connection) -> list[Tombstone]:
    """Of all users who were ever erased, in the order of their erasure."""
    found = db.exec_driver_sql("SELECT user_hash, erased_at FROM tombstones ORDER BY erased_at, user_hash")
    return [Tombstone(bytes(user_hash), erased_at) for user_hash, erased_at in found]


def erase_again(engine: Engine, views: ViewWriter, erased: Sequence[Tombstone]) -> int:
    """Erases whom a restored database brought back: users who are in it from before their erasure. How many.

    Who came back on purpose after the erasure stays; what such a user did before it is not taken in.
    """
    parameters = _hashes_and_times(erased)
    with engine.connect() as db:
        returned = db.exec_driver_sql(_RETURNED, parameters).scalars().all()
    for user_id in returned:
        erase_user(engine, views, user_id)
    with engine.begin() as db:
        # As an erasure does it: who remembers the row of somebody listed here would not look for a tombstone.
        db.exec_driver_sql("SELECT pg_advisory_xact_lock(%(lock)s)", {"lock": ERASURE_LOCK})
        db.exec_driver_sql(_BURY_AGAIN, parameters)
        versions.bump(db, "deletions")
    return len(returned)


_RETURNED = """
    SELECT DISTINCT user_id FROM (
        SELECT user_id, created_at AS at FROM users
        UNION ALL SELECT user_id, min(shown_at) FROM impressions GROUP BY user_id
        UNION ALL SELECT user_id, min(exposed_at) FROM exposures GROUP BY user_id
        UNION ALL SELECT user_id, created_at FROM blocks WHERE user_id IS NOT NULL
        UNION ALL SELECT jsonb_object_keys(definition -> 'forced'), created_at FROM experiments
    ) AS known JOIN unnest(%(hashes)s::bytea[], %(times)s::timestamptz[]) AS erased (user_hash, erased_at)
        ON erased.user_hash = sha256(convert_to(user_id, 'UTF8')) AND known.at <= erased.erased_at
    ORDER BY user_id
"""
_BURY_AGAIN = """
    INSERT INTO tombstones (user_hash, erased_at)
    SELECT * FROM unnest(%(hashes)s::bytea[], %(times)s::timestamptz[])
    ON CONFLICT (user_hash) DO UPDATE SET erased_at = greatest(tombstones.erased_at, excluded.erased_at)
"""


EXPORT = {
    "likes": """
        SELECT item_id, liked_at FROM likes JOIN items ON items.row = item_row WHERE user_row = %(row)s
        ORDER BY liked_at, items.row
    """,
    "interactions": """
        SELECT event_id, item_id, past.kind, value, "timestamp", received_at, session_id, request_id
        FROM interactions AS past JOIN items ON items.row = item_row WHERE user_row = %(row)s ORDER BY seq
    """,
    "on_screen": """
        SELECT event_id, item_id, "timestamp", received_at, session_id, request_id
        FROM on_screen JOIN items ON items.row = item_row WHERE user_row = %(row)s ORDER BY seq
    """,
    "impressions": """
        SELECT request_id, shown_at, surface, route, recommender, release, variants, first_position, promoted, scores,
            sources, propensities,
            jsonb_set(exploration, '{draw,candidates}', to_jsonb(array(
                SELECT item_id FROM jsonb_array_elements_text(exploration #> '{draw,candidates}')
                    WITH ORDINALITY AS candidate (row, position)
                JOIN items ON items.row = candidate.row::int ORDER BY position))) AS exploration,
            array(SELECT item_id FROM unnest(item_rows) WITH ORDINALITY AS shown (row, position)
                  JOIN items USING (row) ORDER BY position) AS item_ids
        FROM impressions WHERE user_id = %(user_id)s ORDER BY shown_at
    """,
    "exposures": """
        SELECT experiment, run, variant, exposed_at, route, surface, release, request_id, marks
        FROM exposures WHERE user_id = %(user_id)s ORDER BY exposed_at, experiment, run, variant
    """,
    "blocks": """
        SELECT item_id, reason, starts_at, ends_at FROM blocks JOIN items ON items.row = item_row
        WHERE user_id = %(user_id)s ORDER BY blocks.id
    """,
    "experiments": """
        SELECT key, run, definition -> 'forced' ->> %(user_id)s AS forced FROM experiments
        WHERE jsonb_exists(definition -> 'forced', %(user_id)s) ORDER BY key, run
    """,
    # Neither by whom, nor who else was meant for a variant: those are other persons' names.
    "audit_entries": """
        SELECT at, action, subject,
            CASE WHEN jsonb_exists(before, 'forced') THEN jsonb_set(before, '{forced}', jsonb_strip_nulls(
                jsonb_build_object(%(user_id)s::text, before -> 'forced' -> %(user_id)s))) ELSE before END AS before,
            CASE WHEN jsonb_exists(after, 'forced') THEN jsonb_set(after, '{forced}', jsonb_strip_nulls(
                jsonb_build_object(%(user_id)s::text, after -> 'forced' -> %(user_id)s))) ELSE after END AS after
        FROM audit_log
        WHERE subject = 'user:' || %(user_id)s OR %(user_id)s IN (before ->> 'user_id', after ->> 'user_id')
            OR jsonb_exists(before -> 'forced', %(user_id)s) OR jsonb_exists(after -> 'forced', %(user_id)s)
        ORDER BY id
    """,
}


def export_user(
    db: Connection, user_id: str, sessions: Callable[[], Sequence[KeptSession] | None] = lambda: None
) -> dict[str, Any]:
    """Everything stored about the user: `user`, a list for each of EXPORT and of the listening sessions, and of the
    user's earlier life that it was erased. Raises NotFound for nobody.

    db:       a transaction whose snapshot does not move, so that all of it is of one moment
    sessions: answers those that Redis keeps, None where it could not be asked; not called for nobody: whoever has a
              session has, a moment later, impressions too
    """
    row = find_users(db, [user_id]).get(user_id, -1)
    parameters = {"row": row, "user_id": user_id}
    exported: dict[str, Any] = {
        what: [dict(found) for found in db.exec_driver_sql(statement, parameters).mappings()]
        for what, statement in EXPORT.items()
    }
    if row < 0 and not any(exported.values()):
        raise unknown(user_id)
    exported["sessions"] = None if (kept := sessions()) is None else _sessions(db, kept)
    user = _user(db, user_id) if row >= 0 else None
    return {"user": user} | exported | {"erased_at": erased_at(db, [user_id]).get(user_id)}


def _sessions(db: Connection, sessions: Sequence[KeptSession]) -> list[dict[str, Any]]:
    rows = sorted(set[int]().union(*(session.rows for session in sessions)))
    ids = {row: item_id for row, item_id in db.exec_driver_sql(_ITEM_IDS, {"rows": rows})}
    return [
        {
            "session_id": session.session_id,
            "expires_at": datetime.fromtimestamp(session.expires_at, UTC),
            "listens": [
                {"item_id": ids.get(row), "listened": fraction, "timestamp": datetime.fromtimestamp(at, UTC)}
                for row, fraction, at in session.listens
            ],
            "given": [ids.get(row) for row in session.given],
        }
        for session in sessions
    ]


_ITEM_IDS = "SELECT row, item_id FROM items WHERE row = ANY(%(rows)s)"


def _user(db: Connection, user_id: str) -> dict[str, Any]:
    found = db.execute(tables.users.select().with_only_columns(*COLUMNS).where(tables.users.c.user_id == user_id))
    return dict(found.mappings().one())
