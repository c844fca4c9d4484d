"""The write side of users' cached pasts: marked dirty before the commit that changes them, cleared after it.

    begin → statements → mark → commit → clear → acknowledge

* A crash anywhere leaves the mark; it outlives the transaction, so readers turn to Postgres until it is over.
* A reader that rebuilds at the same time finds the mark or a new generation, and does not install.
* If the cache fails at the mark, the same transaction gives all cache keys a new version, and nothing that the
  cache held or brings back from its disk is read again; if it fails at the clearing, a transaction of its own does.
* The version is read again after the commit: had it changed, somebody may have built a view under the new one
  before the commit, so that one is cleared too.
* Nothing is acknowledged for SETTLE_SECONDS after a new version was found: until then another worker may answer
  from a view of the old one (see cache_version).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import psycopg2
from redis import Redis, RedisError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app import telemetry
from app.catalog import versions
from app.errors import Unavailable
from app.feedback.cache_version import SETTLE_SECONDS
from app.feedback.cached_keys import delete_keys_of
from app.feedback.user_state import LEASE_SECONDS, view_key

IDLE_SECONDS = 20
"""Postgres ends a transaction whose writer says nothing for this long, so none commits after its mark expired."""
KEYS_PER_CALL = 500
"""A script stops the server while it runs: about 1 ms for this many."""
ERASURE_LOCK = 0x5E60E
"""Advisory lock: shared by transactions that store something about users, exclusive while one is erased."""

logger = logging.getLogger(__name__)

# One call for many users costs the client a quarter of what a pipeline of single commands does (64 users: 0.4 ms
# against 1.4 ms). A Redis Cluster would want one call per slot. What a script writes costs the server most, so these
# write little: where both fields are new there was no view, and a hash of nothing but our mark goes away as a whole,
# which to readers is an eviction, after the commit: no generation, so nothing that is under way is installed.
MARK = """
for _, key in ipairs(KEYS) do
  if redis.call('HSET', key, ARGV[1], ARGV[2], 'gen', ARGV[3]) < 2 then redis.call('HDEL', key, 'view', 'server') end
  redis.call('EXPIRE', key, ARGV[4])
end
"""
CLEAR = """
local plain = {}
for _, key in ipairs(KEYS) do
  if redis.call('HLEN', key) == 2 and redis.call('HEXISTS', key, ARGV[1]) == 1 then
    plain[#plain + 1] = key
  else
    redis.call('HDEL', key, ARGV[1], 'view', 'server')
    redis.call('HSET', key, 'gen', ARGV[2])
    redis.call('EXPIRE', key, ARGV[3])
  end
end
if #plain > 0 then redis.call('DEL', unpack(plain)) end
"""
# Prepared once per connection: planning the two takes longer than they do.
_PREPARE = """
PREPARE segue_version AS SELECT epoch || ':' || seq AS version FROM versions WHERE name = 'cache';
PREPARE segue_open (text, bool, bigint) AS
    SELECT set_config('idle_in_transaction_session_timeout', $1, true),
        CASE WHEN current_setting('synchronous_commit') = 'off'
             THEN set_config('synchronous_commit', 'on', true) END,
        CASE WHEN $2 THEN pg_advisory_xact_lock($3) ELSE pg_advisory_xact_lock_shared($3) END,
        epoch || ':' || seq AS version
    FROM versions WHERE name = 'cache'
"""
OPEN = "EXECUTE segue_open (%(idle)s, %(alone)s, %(lock)s)"
VERSION = "EXECUTE segue_version"


class OutcomeUnknown(Unavailable):
    """The commit was sent and not answered: stored or not, a retry with the same ids puts it right."""


class CacheAway(Exception):
    """The cache failed; the caller gives its keys a new version instead."""


def mark(cache: Redis, cache_version: str, user_ids: Collection[str], token: str, *, ttl_seconds: int) -> None:
    """Says that a transaction on these users is about to commit. Raises CacheAway."""
    _for_all(cache, MARK, cache_version, user_ids, [f"d:{token}", repr(time.time()), _random(), str(ttl_seconds)])


def clear(cache: Redis, cache_version: str, user_ids: Collection[str], token: str, *, ttl_seconds: int) -> None:
    """Says that the transaction is over, and drops what was cached before. Raises CacheAway."""
    _for_all(cache, CLEAR, cache_version, user_ids, [f"d:{token}", _random(), str(ttl_seconds)])


def _for_all(cache: Redis, script: str, cache_version: str, user_ids: Collection[str], arguments: list[str]) -> None:
    try:
        keys = iter([view_key(cache_version, user) for user in user_ids])
        while some := list(islice(keys, KEYS_PER_CALL)):
            cache.eval(script, len(some), *some, *arguments)
    except (RedisError, OSError) as error:
        raise CacheAway(str(error)) from error


def _alone(db: Connection, statement: str) -> str:
    """What one statement answers, without the two trips to the server that open and end a transaction around it, and
    without SQLAlchemy, which takes as long as the trip. Raises psycopg2.Error; `db` is then without a connection."""
    raw: Any = db.connection.driver_connection
    try:
        raw.autocommit = True
        with raw.cursor() as cursor:
            cursor.execute(statement)
            answer: str = cursor.fetchone()[0]
        raw.autocommit = False
    except psycopg2.Error:
        db.invalidate()
        raise
    return answer


def _random() -> str:
    return secrets.token_hex(8)


@dataclass(slots=True)
class Change:
    """A transaction that changes what some users' views say."""

    settled_at: float = 0.0
    """Monotonic seconds: acknowledge no earlier. In the past unless the cache failed."""


class ViewWriter:
    """Wraps transactions on users so that no reader sees an outdated view. One per process, thread-safe."""

    def __init__(self, cache: Redis, *, ttl_seconds: int, settle_seconds: float = SETTLE_SECONDS) -> None:
        """cache: a client that does not retry by itself, so that a restart of the server is noticed."""
        self._cache = cache
        self._ttl = max(ttl_seconds, int(2 * LEASE_SECONDS))
        self._settle_seconds = settle_seconds
        self._noting = threading.Lock()
        self._version: str | None = None
        # When the version was made it can't know: perhaps just now.
        self._settled_at = time.monotonic() + settle_seconds
        self._cache_is_away = False

    def observe(self, version: str) -> None:
        """Notes the version of the cache keys; a new one is not known everywhere before `settle_seconds`."""
        with self._noting:
            if self._version not in (None, version):
                self._settled_at = time.monotonic() + self._settle_seconds
            self._version = version

    @contextmanager
    def changing(
        self, db: Connection, user_ids: Collection[str], *, wait: bool = True, alone: bool = False
    ) -> Iterator[Change]:
        """A transaction on `db`, committed at the end of the block, that changes what these users' views say.

        db: a connection without an open transaction. user_ids: as they are when the block ends. wait: return only
        when every worker would answer from the new state; otherwise the caller heeds `Change.settled_at`. alone: no
        other such transaction runs beside it, as an erasure needs. Raises OutcomeUnknown when the commit, or the
        orphaning of the cache after it, failed.
        """
        token, change = _random(), Change()
        with db.begin() as transaction:
            version = self._open(db, alone)
            yield change
            marked_at = time.monotonic()
            marked = self._marked(db, version, user_ids, token)
            try:
                transaction.commit()
            except DBAPIError as error:
                db.invalidate()
                raise OutcomeUnknown("Postgres did not confirm: retry with the same ids") from error
        try:
            self._finish(db, version if marked else None, user_ids, token, marked_at)
        except (DBAPIError, psycopg2.Error) as error:
            raise OutcomeUnknown("the cache is outdated and Postgres away: retry with the same ids") from error
        change.settled_at = self._settled_at
        if wait:
            time.sleep(max(0.0, change.settled_at - time.monotonic()))

    def forget(self, user_id: str) -> bool:
        """Deletes every key that names the user; whether the cache took it. `changing` has emptied the views before."""
        try:
            delete_keys_of(self._cache, user_id)
        except (RedisError, OSError) as error:
            self._cache_failed(CacheAway(str(error)))
            return False
        return True

    def _open(self, db: Connection, alone: bool) -> str:
        if "segue_open" not in db.info:
            db.exec_driver_sql(_PREPARE)
            db.info["segue_open"] = "prepared"
        settings = {"idle": f"{IDLE_SECONDS}s", "lock": ERASURE_LOCK, "alone": alone}
        version: str = db.exec_driver_sql(OPEN, settings).one().version
        self.observe(version)
        return version

    def _marked(self, db: Connection, version: str, user_ids: Collection[str], token: str) -> bool:
        if not user_ids:
            return True
        try:
            mark(self._cache, version, user_ids, token, ttl_seconds=self._ttl)
        except CacheAway as error:
            self._cache_failed(error)
            versions.bump(db, "cache")
            return False
        self._cache_answered()
        return True

    def _finish(
        self, db: Connection, marked: str | None, user_ids: Collection[str], token: str, marked_at: float
    ) -> None:
        """Clears the marks, under the version that holds now too, or orphans every view."""
        version = _alone(db, VERSION)
        self.observe(version)
        if marked is None:
            return
        try:
            for each in {marked, version}:
                clear(self._cache, each, user_ids, token, ttl_seconds=self._ttl)
        except CacheAway as error:
            self._cache_failed(error)
        else:
            if time.monotonic() - marked_at < LEASE_SECONDS / 2:
                return
        with db.begin():
            self.observe(versions.bump(db, "cache"))

    def _cache_failed(self, error: CacheAway) -> None:
        telemetry.DEPENDENCY_ERRORS.labels("redis").inc()
        if not self._cache_is_away:
            logger.warning("the cache is away, users' views are orphaned until it answers: %s", error)
        self._cache_is_away = True

    def _cache_answered(self) -> None:
        if self._cache_is_away:
            logger.info("the cache answers again")
        self._cache_is_away = False
