"""A user's past as a request gets it: never older than what was acknowledged, whatever Redis says."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine

from app.catalog import versions
from app.feedback import cache_version, user_state
from app.feedback.cache_version import CacheVersion
from app.feedback.ingest import Ingest
from app.serving import context
from app.serving.context import ContextReader, UserContext
from app.serving.inventory import InventoryHost
from app.settings import Settings
from app.storage.embedded.valkey import Valkey
from app.storage.redis import open_async, open_sync, publish_versions
from models.live.state import LiveState
from tests.app.feedback.examples import an_event

Read = Callable[[CacheVersion], UserContext]
TRUST_SECONDS = 600.0


class Server:
    """A Valkey that writes its data down when it is told to, and forgets the rest when it is killed."""

    def __init__(self, folder: Path) -> None:
        valkey = Valkey(folder, folder)
        valkey.prepare(0)
        self.url = valkey.url
        self._command = [*valkey.command(), "--appendonly", "no"]
        self._running = self._started()

    def remember(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.save()

    def restart(self) -> None:
        self.kill()
        self._running = self._started()

    def kill(self) -> None:
        self._running.kill()
        self._running.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        running = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < deadline:
                with suppress(RedisError):
                    client.ping()
                    return running
                time.sleep(0.02)
        raise AssertionError("Valkey did not start")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("valkey"))
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does something else for two seconds is no Postgres that is away, and no process was stopped."""
    monkeypatch.setattr(context, "POSTGRES_SECONDS", 60.0)
    monkeypatch.setattr(cache_version, "TRUST_SECONDS", TRUST_SECONDS)


@pytest.fixture
def cache(server: Server) -> Iterator[redis.Redis]:
    with open_sync(server.url, timeout_seconds=60) as client:
        client.flushall()
        yield client


@pytest.fixture
def read(engine: Engine, server: Server, cache: redis.Redis) -> Read:
    """Ann's context, as a process reads it that knows this of the version."""

    def reading(version: CacheVersion) -> UserContext:
        async def once() -> UserContext:
            client = open_async(server.url, timeout_seconds=60)
            reader = ContextReader(
                engine=engine, cache=client, cache_sync=cache, settings=Settings(), cache_version=version
            )
            try:
                return await reader.read("ann")
            finally:
                await client.aclose()

        return asyncio.run(once())

    return reading


def known_now(engine: Engine, *, seconds_ago: float = 0.0) -> CacheVersion:
    """seconds_ago: that it was looked at."""
    with engine.connect() as db:
        return CacheVersion(versions.read(db)["cache"], time.monotonic() - seconds_ago)


def interactions(context: UserContext) -> int:
    assert context.view is not None
    return context.view.interactions


def test_what_a_restart_brings_back_is_not_believed(
    server: Server, engine: Engine, ingest: Ingest, cache: redis.Redis, read: Read
) -> None:
    assert interactions(read(known_now(engine))) == 0
    server.remember()
    ingest.submit_blocking([an_event("ann")])
    server.restart()
    assert any(b"view" in cache.hgetall(key) for key in cache.keys("*{ann}*")), "the old view is back"

    assert interactions(read(known_now(engine))) == 1
    assert interactions(read(known_now(engine))) == 1


@pytest.mark.parametrize("seconds_ago", [0.0, TRUST_SECONDS + 1])
def test_who_has_not_looked_for_a_while_asks_postgres(
    engine: Engine, ingest: Ingest, cache: redis.Redis, read: Read, seconds_ago: float
) -> None:
    """Redis fails for the writer, who gives the keys another name; the reader could not look since."""
    read(before := known_now(engine, seconds_ago=seconds_ago))
    with engine.begin() as db:
        versions.bump(db, "cache")
    ingest.submit_blocking([an_event("ann")])

    assert interactions(read(before)) == (1 if seconds_ago > 0 else 0), "what it trusts decides, and nothing else"
    assert interactions(read(known_now(engine))) == 1


def test_a_copy_older_than_what_the_process_knows_is_not_followed(
    engine: Engine, ingest: Ingest, cache: redis.Redis, read: Read
) -> None:
    read(known_now(engine))
    with engine.begin() as db:
        publish_versions(cache, versions.read(db))
        versions.bump(db, "cache")
    ingest.submit_blocking([an_event("ann")])

    assert interactions(read(known_now(engine))) == 1


def test_a_later_copy_is_followed(engine: Engine, ingest: Ingest, cache: redis.Redis, read: Read) -> None:
    read(before := known_now(engine))
    with engine.begin() as db:
        versions.bump(db, "cache")
        later = versions.read(db)
    publish_versions(cache, later)
    ingest.submit_blocking([an_event("ann")])

    assert interactions(read(before)) == 1
    assert before.current == later["cache"]


def test_rules_that_a_restart_brings_back_are_looked_up(
    server: Server, engine: Engine, cache: redis.Redis, read: Read, tmp_path: Path
) -> None:
    host = InventoryHost(engine, cache, Settings(data_dir=tmp_path), LiveState())
    assert not host.current.is_behind(read(host.cache_version).versions or {})
    server.remember()
    with engine.begin() as db:
        versions.bump(db, "rules")
        block = versions.read(db)
    publish_versions(cache, block)
    server.restart()

    context = read(host.cache_version)
    assert asyncio.run(host.caught_up(context.versions)).versions["rules"] == block["rules"]
    assert read(host.cache_version).versions == {**block, "server": (context.versions or {})["server"]}


def test_a_connection_that_breaks_as_it_goes_back_is_no_bug(
    engine: Engine, cache: redis.Redis, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switching it back from autocommit is where psycopg2's own error comes out."""
    load = user_state.load

    def load_and_break(db: Connection, *arguments: Any) -> Any:
        view = load(db, *arguments)
        raw = db.connection.dbapi_connection
        assert raw is not None
        with suppress(psycopg2.Error):
            raw.cursor().execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return view

    monkeypatch.setattr(user_state, "load", load_and_break)
    assert read(known_now(engine)).view is None
    monkeypatch.setattr(user_state, "load", load)
    assert interactions(read(known_now(engine))) == 0


def test_who_asks_at_once_after_an_event_shares_a_load(
    server: Server, engine: Engine, ingest: Ingest, cache: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads = user_state.load, []
    monkeypatch.setattr(user_state, "load", lambda *arguments: (loads.append(1), time.sleep(0.2), load(*arguments))[-1])

    async def scenario() -> None:
        client = open_async(server.url, timeout_seconds=60)
        reader = ContextReader(
            engine=engine, cache=client, cache_sync=cache, settings=Settings(), cache_version=known_now(engine)
        )
        for written in range(3):
            loads.clear()
            seen = await asyncio.gather(*(reader.read("ann") for _ in range(5)))
            assert {interactions(context) for context in seen} == {written}
            assert len(loads) == 1
            ingest.submit_blocking([an_event("ann", f"item {written}")])
        await client.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize("is_restarted", [False, True])
def test_nobody_shares_a_load_that_began_before_the_event(  # noqa: PLR0917 - fixtures
    server: Server,
    engine: Engine,
    ingest: Ingest,
    cache: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    is_restarted: bool,
) -> None:
    """Nor where Redis comes back with the generation that the event had changed."""
    load, has_loaded, may_end = user_state.load, threading.Event(), threading.Event()

    def load_and_wait(*arguments: Any) -> Any:
        view = load(*arguments)
        has_loaded.set()
        assert may_end.wait(60)
        return view

    async def scenario() -> None:
        client = open_async(server.url, timeout_seconds=60)
        reader = ContextReader(
            engine=engine, cache=client, cache_sync=cache, settings=Settings(), cache_version=known_now(engine)
        )
        monkeypatch.setattr(user_state, "load", load_and_wait)
        early = asyncio.create_task(reader.read("ann"))
        assert await asyncio.to_thread(has_loaded.wait, 60)
        monkeypatch.setattr(user_state, "load", load)
        server.remember()
        await asyncio.to_thread(ingest.submit_blocking, [an_event("ann")])
        if is_restarted:
            server.restart()
        late = asyncio.create_task(reader.read("ann"))
        await asyncio.wait([late], timeout=5)
        may_end.set()
        assert (interactions(await early), interactions(await late)) == (0, 1)
        assert interactions(await reader.read("ann")) == 1
        await client.aclose()

    asyncio.run(scenario())


def test_without_redis_past_and_versions_are_those_of_postgres(
    engine: Engine, ingest: Ingest, cache: redis.Redis, tmp_path: Path
) -> None:
    """Else a block that another worker acknowledged a moment ago would not hold before the next refresh."""
    ingest.submit_blocking([an_event("ann")])
    host = InventoryHost(engine, cache, Settings(data_dir=tmp_path), LiveState())
    with engine.begin() as db:
        versions.bump(db, "rules")
        block = versions.read(db)

    async def scenario() -> None:
        nowhere = open_async(f"unix://{tmp_path}/nowhere", timeout_seconds=1)
        reader = ContextReader(
            engine=engine, cache=nowhere, cache_sync=cache, settings=Settings(), cache_version=host.cache_version
        )
        context = await reader.read("ann")
        assert interactions(context) == 1
        assert context.versions == await reader.versions() == block
        assert (await host.caught_up(context.versions)).versions["rules"] == block["rules"]
        await nowhere.aclose()

    asyncio.run(scenario())
