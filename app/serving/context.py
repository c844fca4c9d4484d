"""What is known of a user, in one Redis round trip; from Postgres where Redis does not know or is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine

from app import telemetry
from app.catalog.versions import read as versions_in_postgres
from app.feedback import user_state
from app.feedback.cache_version import CacheVersion
from app.feedback.user_state import UserView
from app.serving.breaker import Breaker
from app.settings import Settings
from app.storage.database import POSTGRES_ERRORS
from app.storage.redis import VERSIONS_KEY
from app.storage.redis_multiplexer import RedisMultiplexer, mapping

T = TypeVar("T")
Reply = dict[bytes, bytes] | list[bytes]

POSTGRES_SECONDS = 2.0
"""A request waits no longer for Postgres before it is answered without the user's past."""

logger = logging.getLogger(__name__)

_reads = telemetry.labelled(telemetry.VIEW_READS)


class _Known(NamedTuple):
    """What Redis said of the versions last, and what that means."""

    reply: Reply
    server: str
    versions: Mapping[str, str]


class UserContext(NamedTuple):
    """A user's past as this request sees it, and the versions that Redis, or else Postgres, knew at the same moment.

    view:     None where neither Redis nor Postgres could tell
    versions: None where neither could tell; empty of names where Redis has none of its own life
    """

    user_id: str
    view: UserView | None
    versions: Mapping[str, str] | None

    def as_of(self, at: float | None) -> UserContext:
        """The context without what the user did after `at` (unix seconds); None leaves it as it is."""
        return self if at is None or self.view is None else self._replace(view=self.view.as_of(at))


class ContextReader:
    """Reads contexts for one worker; notes a later version of the Redis keys on the way."""

    def __init__(
        self,
        *,
        engine: Engine,
        cache: redis.asyncio.Redis,
        cache_sync: redis.Redis,
        settings: Settings,
        cache_version: CacheVersion,
        redis_breaker: Breaker | None = None,
        postgres_breaker: Breaker | None = None,
    ) -> None:
        """Breakers: shared with whatever else of this worker asks the two, so that one failure is enough."""
        # A user is read in one statement, hence of one moment: a transaction around it would be two trips more.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._cache = RedisMultiplexer(cache)
        self._cache_sync = cache_sync
        self._settings = settings
        self._redis = redis_breaker or Breaker("redis", patience_seconds=settings.redis_timeout_seconds)
        self._postgres = postgres_breaker or Breaker("postgres", patience_seconds=POSTGRES_SECONDS)
        self._loading: dict[tuple[str, str, str, bytes], asyncio.Task[UserView]] = {}
        self._cache_version = cache_version
        self._known: _Known | None = None

    async def read(self, user_id: str) -> UserContext:
        """Never raises for a dependency: what is missing is None in the answer."""
        if self._redis.lets_through():
            since = time.monotonic()
            try:
                versions, found, is_trusted = await self._asked_redis(user_id)
            except (RedisError, OSError) as error:
                self._redis.failed(error, since=since)
            else:
                self._redis.answered()
                if is_trusted or (known := await self._from_postgres(user_id)).view is None:
                    known = UserContext(user_id, await self._view(user_id, found), versions)
                return known
        return await self._from_postgres(user_id)

    async def versions(self) -> Mapping[str, str] | None:
        """The versions of this moment, for answers that need no user; None where nobody could tell."""
        if self._redis.lets_through():
            since = time.monotonic()
            try:
                server, (raw,) = await self._cache.ask(("HGETALL", VERSIONS_KEY))
            except (RedisError, OSError) as error:
                self._redis.failed(error, since=since)
            else:
                self._redis.answered()
                return self._versions(raw, server)
        return await self._asked_postgres(versions_in_postgres)

    async def _asked_redis(self, user_id: str) -> tuple[Mapping[str, str], user_state.View, bool]:
        """What Redis has, and whether it can be believed."""
        is_trusted = self._cache_version.is_trusted
        versions, found = await self._fetch(user_id)
        if self._cache_version.seen_in_cache(versions.get("cache")):
            versions, found = await self._fetch(user_id)
        return versions, found, is_trusted

    async def _view(self, user_id: str, found: user_state.View) -> UserView | None:
        if found.view is not None:
            _reads("redis").inc()
            return found.view
        return await self._rebuilt(user_id, found)

    async def _fetch(self, user_id: str) -> tuple[Mapping[str, str], user_state.View]:
        key = user_state.view_key(self._cache_version.current, user_id)
        server, (versions, raw) = await self._cache.ask(("HGETALL", VERSIONS_KEY), ("HGETALL", key))
        return self._versions(versions, server), user_state.interpret(mapping(raw), server, time.time())

    def _versions(self, reply: Reply, server: str) -> Mapping[str, str]:
        """Read once, for it is nearly always the same."""
        known = self._known
        if known is None or reply != known.reply or server != known.server:
            known = self._known = _Known(reply, server, _versions(mapping(reply), server))
        return known.versions

    async def _rebuilt(self, user_id: str, found: user_state.View) -> UserView | None:
        """The view from Postgres, loaded once however many requests wait for it.

        A load that began before the user's last event must not answer after it: the generation tells them apart, in one
        life of Redis, and without one nothing does.
        """
        if not self._postgres.lets_through():
            return None
        if found.generation is None and found.installable:
            found = await self._planted(user_id, found)
        if found.generation is None:
            return await self._in_time(asyncio.create_task(self._rebuild(user_id, found)))
        load = (self._cache_version.current, user_id, found.server, found.generation)
        task = self._loading.get(load)
        if task is None:
            task = asyncio.create_task(self._rebuild(user_id, found))
            self._loading[load] = task
            task.add_done_callback(lambda _: self._loading.pop(load, None))
        return await self._in_time(task)

    async def _planted(self, user_id: str, found: user_state.View) -> user_state.View:
        """The same with a generation, by which those who ask at once for a user whom Redis does not have share a load;
        without one where Redis fails."""
        try:
            server, replies = await self._cache.ask(*user_state.planting(self._cache_version.current, user_id))
        except (RedisError, OSError) as error:
            logger.warning("the cache did not answer, a user's view is not stored: %s", error)
            return found
        return found._replace(server=server, generation=replies[-1])

    async def _rebuild(self, user_id: str, found: user_state.View) -> UserView:
        _reads("postgres").inc()
        version = self._cache_version.current
        return await asyncio.to_thread(
            user_state.rebuild, self._engine, self._cache_sync, version, user_id, found, self._settings
        )

    async def _from_postgres(self, user_id: str) -> UserContext:
        _reads("postgres").inc()
        found = await self._asked_postgres(
            lambda db: (user_state.load(db, user_id, self._settings), versions_in_postgres(db))
        )
        return UserContext(user_id, *(found or (None, None)))

    async def _asked_postgres(self, question: Callable[[Connection], T]) -> T | None:
        """What Postgres answers; None where it fails or is too slow."""
        if not self._postgres.lets_through():
            return None

        def ask() -> T:
            with self._engine.connect() as db:
                return question(db)

        return await self._in_time(asyncio.create_task(asyncio.to_thread(ask)))

    async def _in_time(self, loading: asyncio.Task[T]) -> T | None:
        """What Postgres answers; None where it fails or is too slow."""
        since = time.monotonic()
        # Where nobody waits any more its failure is no news.
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(POSTGRES_SECONDS):
                answer = await asyncio.shield(loading)
        except (*POSTGRES_ERRORS, TimeoutError) as error:
            self._postgres.failed(error, since=since, overdue=loading)
            return None
        self._postgres.answered()
        return answer


def _versions(raw: Mapping[bytes, bytes], server: str) -> Mapping[str, str]:
    """What another life of the server left is not looked at: it may be old."""
    known = {name.decode(): version.decode() for name, version in raw.items()}
    return known if known.get("server") == server else {"server": server}
