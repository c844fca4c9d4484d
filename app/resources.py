"""What a worker opens once and closes in reverse order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import redis
import redis.asyncio
from anyio.to_thread import current_default_thread_limiter
from redis.exceptions import RedisError
from sqlalchemy import Engine, text
from threadpoolctl import threadpool_limits

from app import telemetry
from app.experiments.exposure_log import ExposureLog
from app.feedback.cache_version import SETTLE_SECONDS
from app.feedback.ingest import Ingest
from app.feedback.sessions import SessionStore
from app.live.follower import LiveFollower
from app.memory import giving_back
from app.orphans import ending_with, serving_parent
from app.repeating import repeating
from app.retention import RetentionKeeper
from app.serving.breaker import Breaker
from app.serving.context import POSTGRES_SECONDS, ContextReader
from app.serving.exploration import Exploration
from app.serving.impressions import ImpressionWriter
from app.serving.inventory import InventoryHost
from app.serving.next_track import NextTracks
from app.serving.pages import PageStore
from app.serving.pipeline import Pipeline
from app.serving.session_rules import SessionRules
from app.settings import Settings
from app.storage import redis as redis_storage
from app.storage.database import POSTGRES_ERRORS, open_engine
from app.storage.keys import KeyRing
from app.storage.outlasting import outlasting
from app.storage.patience import patient_for

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
"""A dependency that has not answered by then counts as missing."""
LOOK_SECONDS = 2.0
"""Between two looks at what is missing, for the metrics."""
GRACE_SECONDS = 2.0
"""Of a Postgres that says nothing a connection takes leave so long after a statement should have ended."""
POSTGRES_START_SECONDS = 20.0
"""So long a start waits for a Postgres that has gone since the command looked; it hears no signal meanwhile."""
LIVE_START_SECONDS = 20.0
"""So long a start waits for the live signals. A first one, over years of events, takes longer: it serves meanwhile."""
LIVE_LAG_SECONDS = 10.0
"""Live signals that are further behind are degraded."""
LEAVE_SECONDS = 5.0
"""So long the end waits for a refresh under way."""
YOUNG_OBJECTS = 10_000
"""So many are made before the collector looks at them: those of some hundred answers, of which nearly all are gone by
then without it. Python's 700 are those of ten."""


@dataclass
class Resources:
    """Everything that handlers work with. Built by `open_resources`, closed with it."""

    settings: Settings
    engine: Engine
    cache: redis.asyncio.Redis
    cache_sync: redis.Redis
    live: LiveFollower
    ingest: Ingest
    impressions: ImpressionWriter
    exposures: ExposureLog
    inventories: InventoryHost
    contexts: ContextReader
    pages: PageStore
    pipeline: Pipeline
    next_tracks: NextTracks
    scraping: Executor
    """For `/metrics` alone: the threads of requests may all wait for a Postgres that hangs."""
    _asking: asyncio.Task[None] | None = None

    @property
    def keys(self) -> KeyRing:
        return self.inventories.current.keys

    def publish_versions(self) -> None:
        """After a commit that bumped a version: when this returns, no worker answers from the old one. Blocks."""
        if not self.inventories.refresh():
            # Redis can't tell the others; by then they have looked for themselves.
            time.sleep(SETTLE_SECONDS)

    async def counted(self, xid: int, seconds: float) -> bool:
        """Whether, within so many seconds, what this transaction did is in the live signals and can be shown."""
        if not await self.live.wait_for(xid, seconds):
            return False
        if len(self.live.state) > len(self.inventories.current.catalog):
            await asyncio.to_thread(self.inventories.refresh)
        return True

    def waiting(self) -> dict[str, int]:
        """The length of each queue; every one has a bound (docs/architecture.md, Limits)."""
        return {
            "events": self.ingest.queued_events,
            "impressions": self.impressions.queued,
            "exposures": self.exposures.queued,
            "pages": self.pages.unwritten,
            "threads": current_default_thread_limiter().statistics().tasks_waiting,
        }

    async def degraded(self) -> dict[str, str]:
        """What is missing now, by name, and why; empty when all is well. Asks each dependency, and not for long."""
        missing: dict[str, str] = {}
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.shield(self._asked_postgres())
        except (*POSTGRES_ERRORS, TimeoutError) as error:
            missing["postgres"] = _first_line(error)
        try:
            await redis_storage.ping(self.cache)
        except (RedisError, OSError) as error:
            missing["redis"] = _first_line(error)
        else:
            if self.pages.refused is not None:
                missing["redis"] = f"it takes nothing: {self.pages.refused}"
        if self.inventories.models.failure:
            missing["release"] = self.inventories.models.failure
        elif self.inventories.current.release.release_id is None:
            missing["release"] = "none was activated yet: run `segue train`"
        if (lag := self.live.lag_seconds) > LIVE_LAG_SECONDS and "postgres" not in missing:
            missing["live"] = f"the live signals are {lag:.0f} s behind"
            if self.live.held_back_by:
                missing["live"] += f"; they wait for {self.live.held_back_by}"
        if (cause := self.ingest.refused) is not None and "postgres" not in missing:
            missing["events"] = f"the last ones were not stored: {cause}"
        for dependency in ("postgres", "redis"):
            telemetry.DEPENDENCY_UP.labels(dependency).set(dependency not in missing)
        return missing

    def _asked_postgres(self) -> asyncio.Task[None]:
        """One question at a time: a server that hangs must not take a thread with each."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(_ask, self.engine))
            # Where nobody waits any more its failure is no news.
            self._asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._asking


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Opens in order; whatever is open when something fails, or at the end, is closed in reverse."""
    if settings.database_url is None or settings.redis_url is None:
        raise RuntimeError("DATABASE_URL and REDIS_URL are not set; `segue serve` starts the embedded servers")
    timeout = settings.redis_timeout_seconds
    async with AsyncExitStack() as stack:
        # One core per worker: two BLAS threads on a busy machine made a 0.03 ms fold-in cost 16 ms.
        stack.enter_context(threadpool_limits(limits=1))
        engine = open_engine(
            settings.database_url,
            pool=settings.database_pool,
            statement_timeout_seconds=settings.database_timeout_seconds,
        )
        stack.callback(engine.dispose)
        stack.enter_context(patient_for(engine, settings.database_timeout_seconds + GRACE_SECONDS))
        cache_sync = redis_storage.open_sync(settings.redis_url, timeout_seconds=timeout)
        stack.callback(cache_sync.close)
        cache = redis_storage.open_async(settings.redis_url, timeout_seconds=timeout)
        stack.push_async_callback(cache.aclose)
        live = LiveFollower(engine, settings)
        stack.callback(live.close)
        redis_breaker = Breaker("redis", patience_seconds=timeout)
        postgres_breaker = Breaker("postgres", patience_seconds=POSTGRES_SECONDS)
        host = partial(InventoryHost, engine, cache_sync, settings, live.state, breaker=postgres_breaker)
        inventories = await asyncio.to_thread(outlasting, host, POSTGRES_START_SECONDS)
        if not await asyncio.to_thread(live.caught_up, LIVE_START_SECONDS):
            log.warning("serving begins while the live signals are still being counted")
        ingest = Ingest(engine, cache_sync, settings, on_commit=live.poke)
        stack.callback(ingest.close)
        impressions = ImpressionWriter(engine, capacity=settings.impressions_queue)
        stack.callback(impressions.close)
        exposures = ExposureLog(
            engine,
            ingest.views,
            folder=settings.data_dir / "exposures",
            database_id=inventories.models.database_id,
            capacity=settings.exposures_queue,
        )
        stack.callback(exposures.close)
        contexts = ContextReader(
            engine=engine,
            cache=cache,
            cache_sync=cache_sync,
            settings=settings,
            cache_version=inventories.cache_version,
            redis_breaker=redis_breaker,
            postgres_breaker=postgres_breaker,
        )
        pages = PageStore(cache, ttl_seconds=settings.cursor_ttl_seconds, breaker=redis_breaker)
        stack.push_async_callback(pages.close)
        stack.enter_context(
            repeating("refresher", settings.refresh_seconds, partial(_refresh, inventories), leave_after=LEAVE_SECONDS)
        )
        retention = RetentionKeeper(engine, cache_sync, settings)
        stack.callback(retention.close)
        # uvicorn's workers outlive a killed parent.
        stack.enter_context(ending_with(serving_parent(), _terminate))
        resources = Resources(
            settings=settings,
            engine=engine,
            cache=cache,
            cache_sync=cache_sync,
            live=live,
            ingest=ingest,
            impressions=impressions,
            exposures=exposures,
            inventories=inventories,
            contexts=contexts,
            pages=pages,
            pipeline=Pipeline(
                contexts=contexts,
                inventories=inventories,
                pages=pages,
                impressions=impressions,
                exploration=Exploration(settings.explore_share, settings.explore_temperature),
                exposures=exposures,
            ),
            next_tracks=NextTracks(
                engine=engine,
                store=SessionStore(
                    cache, timeout_seconds=settings.session_timeout_seconds, length=settings.session_length
                ),
                contexts=contexts,
                inventories=inventories,
                ingest=ingest,
                impressions=impressions,
                rules=_session_rules(settings),
                redis_breaker=redis_breaker,
                postgres_breaker=postgres_breaker,
                timeout_seconds=settings.session_timeout_seconds,
                length=settings.session_length,
            ),
            scraping=stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="metrics")),
        )
        stack.push_async_callback(_end, asyncio.create_task(_looked_after(resources)))
        stack.enter_context(_spared_collection())
        stack.enter_context(giving_back())
        yield resources


async def _end(task: asyncio.Task[None]) -> None:
    """Before what it asks is closed. Told again where a library caught it in between and kept it to itself."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1.0)


async def _looked_after(resources: Resources) -> None:
    """Keeps `segue_dependency_up` true whether or not somebody asks `/readyz`, and says what waits."""
    while True:
        await resources.degraded()
        for queue, length in resources.waiting().items():
            telemetry.QUEUED.labels(queue).set(length)
        await asyncio.sleep(LOOK_SECONDS)


def _session_rules(settings: Settings) -> SessionRules:
    return SessionRules(
        sampling=settings.next_sampling,
        temperature=settings.next_temperature,
        candidates=settings.next_candidates,
        least_listening=settings.next_least_listening,
        switch_below=settings.next_switch_below,
        artist_tracks=settings.next_artist_tracks,
        popular_share=settings.next_popular_share,
        skip_below=settings.next_skip_below,
        skip_push=settings.next_skip_push,
        artist_fatigue=settings.next_artist_fatigue,
    )


def _refresh(inventories: InventoryHost) -> None:
    try:
        inventories.refresh()
    except POSTGRES_ERRORS as error:
        telemetry.DEPENDENCY_ERRORS.labels("postgres").inc()
        log.warning("not refreshed: %s", _first_line(error))
    except Exception:
        # It must be called again.
        log.exception("not refreshed")


@contextmanager
def _spared_collection() -> Iterator[None]:
    """Within the block the collector of cycles passes over what is there now: 200,000 objects of the program and its
    libraries, which took a tenth of a second each time, while everybody waited."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _ask(engine: Engine) -> None:
    with engine.connect() as db:
        db.execute(text("select 1"))


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
