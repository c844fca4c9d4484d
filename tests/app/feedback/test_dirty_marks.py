"""No reader is answered from an outdated view: crashes, races and a failing cache included."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from app.catalog import rows, versions
from app.errors import Unavailable
from app.feedback import dirty_marks, user_state
from app.feedback.dirty_marks import ViewWriter
from app.feedback.event_log import store
from app.feedback.ingest import Ingest
from app.feedback.user_state import UserView, interpret, view_key
from app.settings import Settings
from app.storage.database import open_engine
from tests.app.feedback.examples import an_event

ReadView = Callable[[str], UserView]


@pytest.fixture
def key(engine: Engine) -> Callable[[], str]:
    """Ann's key, as it is called now."""

    def current() -> str:
        with engine.connect() as db:
            return view_key(versions.read(db)["cache"], "ann")

    return current


@pytest.fixture
def dead_cache() -> Iterator[redis.Redis]:
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0), socket_timeout=0.2) as client:
        yield client


class Crash(Exception):
    """Stands for a kill -9 of the writer."""


class TestReadYourWrites:
    def test_the_next_read_shows_the_event(self, ingest: Ingest, read_view: ReadView) -> None:
        assert read_view("ann").interactions == 0
        ingest.submit_blocking([an_event("ann")])
        assert read_view("ann").interactions == 1

    def test_a_view_is_installed_once_and_then_read(
        self, ingest: Ingest, read_view: ReadView, cache: redis.Redis, key: Callable[[], str]
    ) -> None:
        ingest.submit_blocking([an_event("ann")])
        read_view("ann")
        found = interpret(cache.hgetall(key()), time.time())
        assert found.view is not None
        assert found.view.interactions == 1
        assert 0 < cache.ttl(key()) <= Settings().view_ttl_seconds

    def test_a_retry_of_a_stored_event_clears_the_view_too(
        self, ingest: Ingest, read_view: ReadView, engine: Engine
    ) -> None:
        """The first attempt may have died after its commit, with its mark lost to an eviction."""
        event = an_event("ann")
        read_view("ann")
        with engine.begin() as db:
            store(db, [[event]], auto_create=True)
        assert read_view("ann").interactions == 0
        assert ingest.submit_blocking([event]).duplicates == 1
        assert read_view("ann").interactions == 1


class TestCrash:
    def test_between_commit_and_clearing_the_next_read_is_right(
        self, engine: Engine, cache: redis.Redis, read_view: ReadView, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read_view("ann")
        monkeypatch.setattr(ViewWriter, "_finish", crash)
        change(engine, cache, expect=Crash)
        assert read_view("ann").interactions == 1

    def test_between_mark_and_commit_readers_see_the_old_past_and_do_not_keep_it(
        self,
        cache: redis.Redis,
        read_view: ReadView,
        key: Callable[[], str],
        postgres_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        dying = open_engine(postgres_url)
        monkeypatch.setattr(dying.dialect, "do_commit", crash)
        change(dying, cache, expect=Crash)
        dying.dispose()
        assert read_view("ann").interactions == 0
        assert b"view" not in cache.hgetall(key())

    def test_its_mark_ends_with_the_lease_and_is_tidied_away(
        self,
        engine: Engine,
        cache: redis.Redis,
        read_view: ReadView,
        key: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(ViewWriter, "_finish", crash)
        change(engine, cache, expect=Crash)
        [mark] = [name for name in cache.hgetall(key()) if name.startswith(b"d:")]
        cache.hset(key(), mark, str(time.time() - user_state.LEASE_SECONDS - 1))
        read_view("ann")
        assert set(cache.hgetall(key())) == {b"gen", b"view"}

    def test_a_writer_that_sleeps_past_its_lease_cannot_commit(
        self, engine: Engine, cache: redis.Redis, read_view: ReadView, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert dirty_marks.IDLE_SECONDS < user_state.LEASE_SECONDS
        monkeypatch.setattr(dirty_marks, "IDLE_SECONDS", 1)
        commit = engine.dialect.do_commit
        monkeypatch.setattr(engine.dialect, "do_commit", lambda raw: (time.sleep(1.3), commit(raw)))
        change(engine, cache, expect=Unavailable)
        monkeypatch.undo()
        assert read_view("ann").interactions == 0


class TestRaces:
    def test_a_rebuild_that_began_before_the_commit_does_not_install(
        self, ingest: Ingest, read_view: ReadView, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = user_state.load

        def load_then_lose_the_race(*arguments: object) -> UserView:
            view = load(*arguments)  # type: ignore[arg-type]
            monkeypatch.undo()
            ingest.submit_blocking([an_event("ann")])
            return view

        monkeypatch.setattr(user_state, "load", load_then_lose_the_race)
        read_view("ann")
        assert read_view("ann").interactions == 1

    def test_nor_where_the_key_was_evicted_meanwhile(
        self,
        cache: redis.Redis,
        ingest: Ingest,
        read_view: ReadView,
        key: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        load = user_state.load

        def load_then_evict(*arguments: object) -> UserView:
            view = load(*arguments)  # type: ignore[arg-type]
            monkeypatch.undo()
            ingest.submit_blocking([an_event("ann")])
            cache.delete(key())
            return view

        monkeypatch.setattr(user_state, "load", load_then_evict)
        read_view("ann")
        assert read_view("ann").interactions == 1

    def test_nor_where_the_mark_was_evicted_before_the_commit(
        self, engine: Engine, cache: redis.Redis, read_view: ReadView, key: Callable[[], str], monkeypatch: Any
    ) -> None:
        """The rebuild finds neither mark nor generation, reads the old past, and installs after the clearing."""
        install, late = user_state._install, []
        monkeypatch.setattr(user_state, "_install", lambda *arguments: late.append(arguments))
        commit = engine.dialect.do_commit

        def evict_and_rebuild(connection: object) -> None:
            monkeypatch.setattr(engine.dialect, "do_commit", commit)
            cache.delete(key())
            read_view("ann")
            commit(connection)

        monkeypatch.setattr(engine.dialect, "do_commit", evict_and_rebuild)
        change(engine, cache)
        [arguments] = late
        assert install(*arguments) is False
        monkeypatch.undo()
        assert read_view("ann").interactions == 1

    def test_a_rebuild_that_met_a_mark_halfway_leaves_nothing_for_after_a_crash(
        self, engine: Engine, cache: redis.Redis, read_view: ReadView, key: Callable[[], str], monkeypatch: Any
    ) -> None:
        """It saw an empty hash, then planted on the mark's generation, then read before the commit. The writer dies
        after its commit, and the mark's lease ends: what was installed meanwhile would be used."""
        plant = user_state._plant
        monkeypatch.setattr(ViewWriter, "_finish", crash)
        commit = engine.dialect.do_commit

        def rebuild_then_commit(connection: object) -> None:
            monkeypatch.setattr(engine.dialect, "do_commit", commit)
            monkeypatch.setattr(user_state, "_plant", lambda cache, key, _: plant(cache, key, None))
            monkeypatch.setattr(user_state, "interpret", lambda *_: user_state.View(None, None, True))
            read_view("ann")
            commit(connection)

        monkeypatch.setattr(engine.dialect, "do_commit", rebuild_then_commit)
        change(engine, cache, expect=Crash)
        monkeypatch.undo()
        for name in cache.hgetall(key()):
            if name.startswith(b"d:"):
                cache.hset(key(), name, "0")
        assert read_view("ann").interactions == 1

    def test_a_new_cache_version_at_any_moment_leaves_no_old_view(
        self, engine: Engine, cache: redis.Redis, read_view: ReadView
    ) -> None:
        """A view built under the new version before the commit: the writer marked only the old one."""
        writer = ViewWriter(cache, ttl_seconds=100, settle_seconds=0)
        with engine.connect() as db, writer.changing(db, ["ann"]):
            store(db, [[an_event("ann")]], auto_create=True)
            with engine.begin() as other:
                versions.bump(other, "cache")
            assert read_view("ann").interactions == 0
        assert read_view("ann").interactions == 1

    @pytest.mark.parametrize("seed", range(12))
    def test_no_interleaving_leaves_an_old_view(  # noqa: PLR0917 - fixtures
        self,
        engine: Engine,
        cache: redis.Redis,
        read_view: ReadView,
        key: Callable[[], str],
        seed: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Two writers and two rebuilds, one step at a time in random order, with evictions, new versions and a cache
        that fails. After each step, whoever reads sees at least what was acknowledged."""
        chance = random.Random(seed)
        with engine.begin() as db:
            rows.allocate_items(db, [f"i{n}" for n in range(4)])
            rows.allocate_users(db, ["ann"])
        acknowledged: list[str] = []

        def write(*items: str) -> None:
            for item in items:
                change(engine, cache, item=item)
                acknowledged.append(item)

        stage = Stage(chance)
        stage.install(monkeypatch, engine)
        for actor in (
            lambda: write("i0", "i1"),
            lambda: write("i2", "i3"),
            lambda: [read_view("ann") for _ in range(4)],
            lambda: [read_view("ann") for _ in range(4)],
        ):
            stage.add(actor)
        while stage.step():
            if chance.random() < 0.1:
                cache.delete(key())
            if chance.random() < 0.05:
                with contextlib.suppress(OperationalError), short_wait(engine) as db:
                    versions.bump(db, "cache")
            known = len(acknowledged)
            assert read_view("ann").interactions >= known
        stage.raise_failures()
        assert read_view("ann").interactions == len(acknowledged) == 4


class TestFailingCache:
    def test_the_event_is_stored_all_the_same_and_old_views_are_orphaned(
        self, engine: Engine, dead_cache: redis.Redis, read_view: ReadView
    ) -> None:
        read_view("ann")
        ingest = Ingest(engine, dead_cache, Settings(), settle_seconds=0)
        assert ingest.submit_blocking([an_event("ann")]).accepted == 1
        ingest.close()
        assert read_view("ann").interactions == 1

    def test_lost_between_mark_and_clearing_what_its_disk_brings_back_is_not_read(
        self,
        engine: Engine,
        cache: redis.Redis,
        read_view: ReadView,
        key: Callable[[], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        read_view("ann")
        old_key, before = key(), cache.hgetall(key())
        monkeypatch.setattr(dirty_marks, "clear", away)
        change(engine, cache)
        cache.delete(old_key)
        cache.hset(old_key, mapping=before)
        assert read_view("ann").interactions == 1

    def test_nothing_is_acknowledged_before_every_worker_knows_the_new_version(
        self, engine: Engine, dead_cache: redis.Redis
    ) -> None:
        writer = ViewWriter(dead_cache, ttl_seconds=100, settle_seconds=0.5)
        started = time.monotonic()
        with engine.connect() as db, writer.changing(db, ["ann"]):
            store(db, [[an_event("ann")]], auto_create=True)
        assert time.monotonic() - started >= 0.5

    def test_another_writer_waits_too(self, engine: Engine, cache: redis.Redis) -> None:
        """A reader may still use a view of the old version, which this writer doesn't mark."""
        writer = ViewWriter(cache, ttl_seconds=100, settle_seconds=0.5)
        with engine.connect() as db, writer.changing(db, ["ann"]):
            pass
        with engine.begin() as db:
            versions.bump(db, "cache")
        started = time.monotonic()
        with engine.connect() as db, writer.changing(db, ["ann"]):
            pass
        assert time.monotonic() - started >= 0.5

    def test_is_said_once(self, engine: Engine, dead_cache: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
        writer = ViewWriter(dead_cache, ttl_seconds=100, settle_seconds=0)
        for _ in range(3):
            with engine.connect() as db, writer.changing(db, ["ann"]):
                pass
        assert len([record for record in caplog.records if "cache is away" in record.message]) == 1


def change(engine: Engine, cache: redis.Redis, expect: type[Exception] | None = None, *, item: str = "dune") -> None:
    """Stores one event of ann."""
    writer = ViewWriter(cache, ttl_seconds=100, settle_seconds=0)
    expectation = contextlib.nullcontext() if expect is None else pytest.raises(expect)
    with expectation, engine.connect() as db, writer.changing(db, ["ann"]):
        store(db, [[an_event("ann", item)]], auto_create=True)


def crash(*_: object) -> None:
    raise Crash


def away(*_: object, **__: object) -> None:
    raise dirty_marks.CacheAway("gone")


@contextlib.contextmanager
def short_wait(engine: Engine) -> Iterator[Connection]:
    """A transaction that gives up where a paused actor holds what it needs."""
    with engine.begin() as db:
        db.exec_driver_sql("SET LOCAL lock_timeout = '20ms'")
        yield db


class Stage:
    """Runs actors in threads of their own, one at a time, from one step to the next."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._paused: list[threading.Semaphore] = []
        self._went = threading.Semaphore(0)
        self._on_stage = 0
        self._mine = threading.local()
        self._failures: list[BaseException] = []

    def install(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        """Every step of writing and rebuilding becomes a place to pause; the cache fails now and then."""
        for name in ("mark", "clear"):
            monkeypatch.setattr(dirty_marks, name, self._pausing(getattr(dirty_marks, name), fails=0.1))
        for name in ("load", "_install", "_plant"):
            monkeypatch.setattr(user_state, name, self._pausing(getattr(user_state, name)))
        monkeypatch.setattr(engine.dialect, "do_commit", self._pausing(engine.dialect.do_commit))

    def add(self, actor: Callable[[], object]) -> None:
        go = threading.Semaphore(0)

        def run() -> None:
            self._mine.go = go
            go.acquire()
            try:
                actor()
            except BaseException as error:  # noqa: BLE001 - the test's own thread raises it again
                self._failures.append(error)
            self._on_stage -= 1
            self._went.release()

        self._on_stage += 1
        self._paused.append(go)
        threading.Thread(target=run, daemon=True).start()

    def step(self) -> bool:
        """Lets one actor go on to its next pause; one that waits for another's lock stays under way meanwhile."""
        if self._paused:
            self._paused.pop(self._chance.randrange(len(self._paused))).release()
        self._went.acquire(timeout=0.2)
        return self._on_stage > 0

    def raise_failures(self) -> None:
        for failure in self._failures:
            raise failure

    def _pausing(self, function: Callable[..., Any], *, fails: float = 0) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._pause()
            if fails and self._is_actor() and self._chance.random() < fails:
                raise dirty_marks.CacheAway("gone before")
            answer = function(*arguments, **options)
            if fails and self._is_actor() and self._chance.random() < fails:
                raise dirty_marks.CacheAway("gone after")
            self._pause()
            return answer

        return wrapped

    def _is_actor(self) -> bool:
        return hasattr(self._mine, "go")

    def _pause(self) -> None:
        if self._is_actor():
            self._paused.append(self._mine.go)
            self._went.release()
            self._mine.go.acquire()
