"""A user's past in the cache: how a reader interprets it, and how it is built again from Postgres.

One hash per user, written by `dirty_marks` and by the rebuild here:

    view       what `user_view.encode` made
    server     the Redis server whose generation the view was made for; another after each start
    gen        random; changes whenever the past may have changed
    d:<token>  unix time since when a transaction that changes the past is under way

A reader takes the hash in one HGETALL. A view of this server without live marks is exact; one of another was brought
back by a restart and counts as missing. With a live mark the reader reads Postgres and leaves the cache alone; without
a view it reads Postgres and installs what it read, provided that `gen` is still what it was before the reading. A mark
older than LEASE_SECONDS belongs to a writer that died: its transaction was ended by Postgres long ago
(`dirty_marks.IDLE_SECONDS`), so what Postgres holds is final.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from redis import Redis, RedisError
from sqlalchemy import Connection, Engine

from app.feedback.user_view import UserView, decode, encode
from app.feedback.weights import NEGATIVE, POSITIVE, sign_of, weight_of
from app.settings import Settings
from app.storage.redis_multiplexer import Command

__all__ = [
    "LEASE_SECONDS",
    "UserView",
    "View",
    "decode",
    "encode",
    "interpret",
    "load",
    "planting",
    "rebuild",
    "view_key",
]

LEASE_SECONDS = 60.0
MARK = b"d:"

logger = logging.getLogger(__name__)


class View(NamedTuple):
    """What one HGETALL says: the view if it can be used, and what a rebuild needs to know if it can't.

    server:      that answered
    installable: no transaction on this user is under way, so a rebuilt view may be stored
    """

    view: UserView | None
    server: str
    generation: bytes | None
    installable: bool


def view_key(cache_version: str, user_id: str) -> str:
    """The hash of this user; all keys of a user share the hash tag, hence the slot of a Redis Cluster."""
    return f"segue:{cache_version}:u:{{{user_id}}}"


def interpret(raw_hash: Mapping[bytes, bytes], server: str, now: float) -> View:
    """Reads what HGETALL on this server answered at `now` (unix seconds). Pure; the unreadable counts as missing."""
    generation = raw_hash.get(b"gen")
    if any(name.startswith(MARK) and _is_live(since, now) for name, since in raw_hash.items()):
        return View(None, server, generation, installable=False)
    return View(_view_of(raw_hash, server), server, generation, installable=True)


def _view_of(raw_hash: Mapping[bytes, bytes], server: str) -> UserView | None:
    encoded = raw_hash.get(b"view")
    if not encoded or raw_hash.get(b"server") != server.encode():
        return None
    try:
        return decode(encoded)
    except ValueError:
        return None


def _is_live(since: bytes, now: float) -> bool:
    return now - float(since) < LEASE_SECONDS


def rebuild(  # noqa: PLR0917 - what interpret answered, then what a thread needs
    engine: Engine, cache: Redis, cache_version: str, user_id: str, found: View, settings: Settings
) -> UserView:
    """The user's past from Postgres, left in the cache for the next reader where that is safe. Blocks.

    found: what `interpret` said, with the generation that was planted where it had none; without one nothing is stored.
    Raises sqlalchemy.exc.SQLAlchemyError when Postgres is away; a failing cache is logged and nothing else.
    """
    with engine.connect() as db:
        view = load(db, user_id, settings)
    if found.installable and found.generation is not None:
        key = view_key(cache_version, user_id)
        _install(cache, key, found.generation, found.server, view, settings.view_ttl_seconds)
    return view


def planting(cache_version: str, user_id: str) -> tuple[Command, ...]:
    """Commands for Redis, of which the last one answers the generation to compare with later.

    A missing one is set now: if the key went away and came back meanwhile (evicted, then changed and evicted
    again), "still missing" would look like "unchanged".
    """
    key = view_key(cache_version, user_id)
    return ("HSETNX", key, "gen", secrets.token_hex(8)), ("EXPIRE", key, int(2 * LEASE_SECONDS)), ("HGET", key, "gen")


# Stores a view unless the generation changed or a live mark is there; drops the marks that are not.
INSTALL = """
if redis.call('HGET', KEYS[1], 'gen') ~= ARGV[1] then return 0 end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 2) == 'd:' then
    if tonumber(ARGV[4]) - tonumber(fields[i + 1]) < tonumber(ARGV[5]) then return 0 end
    redis.call('HDEL', KEYS[1], fields[i])
  end
end
redis.call('HSET', KEYS[1], 'view', ARGV[2], 'server', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[6])
return 1
"""


def _install(  # noqa: PLR0917 - the arguments of a script
    cache: Redis, key: str, generation: bytes, server: str, view: UserView, ttl_seconds: int
) -> bool:
    arguments = generation, encode(view), server, repr(time.time()), repr(LEASE_SECONDS), str(ttl_seconds)
    try:
        return bool(cache.eval(INSTALL, 1, key, *arguments))
    except (RedisError, OSError) as error:
        logger.warning("the cache did not answer, a user's view is not stored: %s", error)
        return False


# The latest state of each item. Sign as in weights.sign_of (a test compares the two). What counts as a state is the
# latest opinion if there is one: feedback with a sign, any rating, or a like taken back; a view, a click or a
# half-heard track says nothing against an earlier like, whenever it comes.
PAST = """
WITH owner AS (
    SELECT row AS user_row, preferred_categories FROM users WHERE user_id = %(user_id)s
), signed AS (
    SELECT item_row, kind, value, seq, least(timestamp, received_at) AS at,
        CASE WHEN kind = ANY(%(positive)s) THEN 1
             WHEN kind = ANY(%(negative)s) THEN -1
             WHEN kind = 'rating' AND value > 3.5 THEN 1
             WHEN kind = 'rating' AND value <= 2 THEN -1
             WHEN kind = 'listen' AND value >= 0.7 THEN 1
             WHEN kind = 'listen' AND value < 0.3 THEN -1
             ELSE 0 END AS sign
    FROM interactions JOIN owner USING (user_row)
), states AS (
    SELECT DISTINCT ON (item_row) item_row, kind, value, seq, at, sign,
        max(at) OVER (PARTITION BY item_row) AS touched_at
    FROM signed
    ORDER BY item_row, (sign <> 0 OR kind IN ('rating', 'unlike')) DESC, at DESC, seq DESC
), numbered AS (
    SELECT states.*,
        row_number() OVER (ORDER BY at DESC, seq DESC) AS nth_newest,
        row_number() OVER (ORDER BY touched_at DESC, item_row DESC) AS nth_seen
    FROM states
)
SELECT user_row, preferred_categories,
    (SELECT count(*) FROM states) AS interactions,
    (SELECT count(*) FROM states WHERE sign > 0) AS positives,
    (SELECT array_agg(item_row ORDER BY nth_seen DESC) FROM numbered WHERE nth_seen <= %(seen_limit)s) AS seen,
    (SELECT json_agg(json_build_array(item_row, kind, value, extract(epoch FROM at)) ORDER BY nth_newest DESC)
       FROM numbered WHERE nth_newest <= %(history_length)s) AS history,
    (SELECT json_agg(json_build_array(experiment, exposures.run))
       FROM experiments JOIN exposures ON experiment = key AND exposures.run = experiments.run
       WHERE user_id = %(user_id)s AND status = 'running' AND definition ->> 'route' IS NOT NULL) AS exposed
FROM owner
"""


def load(db: Connection, user_id: str, settings: Settings) -> UserView:
    """The user's past as Postgres has it, in one statement, hence of one moment.

    An event from the future of the server counts as of its arrival: its time is min(timestamp, received_at),
    ties go to the one stored later. The view is empty when the user is unknown or erased.
    """
    row = db.exec_driver_sql(
        PAST,
        {
            "user_id": user_id,
            "positive": sorted(POSITIVE),
            "negative": sorted(NEGATIVE),
            "seen_limit": settings.seen_limit,
            "history_length": settings.history_length,
        },
    ).one_or_none()
    return UserView.empty() if row is None else _view(row, settings)


def _view(row: Any, settings: Settings) -> UserView:
    history: list[tuple[int, str, float | None, float]] = row.history or []
    weights = settings.feedback_weights
    return UserView(
        user_row=row.user_row,
        rows=np.array([item for item, _, _, _ in history], np.int32),
        weights=np.array([weight_of(kind, value, weights) for _, kind, value, _ in history], np.float32),
        signs=np.array([sign_of(kind, value) for _, kind, value, _ in history], np.int8),
        timestamps=np.array([at for _, _, _, at in history], np.float64),
        seen=np.array(row.seen or [], np.int32),
        interactions=row.interactions,
        positives=row.positives,
        preferred_categories=tuple(row.preferred_categories),
        exposed=frozenset((key, run) for key, run in row.exposed or ()),
    )
