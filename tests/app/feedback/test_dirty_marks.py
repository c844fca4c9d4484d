"""No reader is answered from an outdated view: crashes, races and a failing cache included."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import redis
from sqlalchemy import Engine

from app.catalog import versions
from app.errors import Unavailable
from app.feedback import dirty_marks, user_state
from app.feedback.dirty_marks import ViewWriter
from app.feedback.event_log import store
from app.feedback.ingest import Ingest
from app.feedback.user_state import UserView, interpret
from app.settings import Settings
from app.storage.database import open_engine
from tests.app.feedback.examples import A_SERVER, an_event
from tests.app.feedback.writers import Crash, away, change, crash

ReadView = Callable[[str], UserView]


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
        found = interpret(cache.hgetall(key()), A_SERVER, time.time())
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


class TestTwoWriters:
    def test_the_end_of_one_leaves_the_mark_of_the_other(self, cache: redis.Redis) -> None:
        ann, bob = (user_state.view_key("v", user) for user in ("ann", "bob"))
        cache.hset(ann, mapping={"gen": "0", "view": "a past", "server": "s"})
        for token in ("first", "second"):
            dirty_marks.mark(cache, "v", ["ann", "bob"], token, ttl_seconds=100)
        assert b"view" not in cache.hgetall(ann)
        seen = {key: cache.hget(key, "gen") for key in (ann, bob)}
        dirty_marks.clear(cache, "v", ["ann", "bob"], "first", ttl_seconds=100)
        for key in (ann, bob):
            assert set(cache.hgetall(key)) == {b"gen", b"d:second"}
            assert cache.hget(key, "gen") != seen[key]
            assert cache.ttl(key) > 0
        dirty_marks.clear(cache, "v", ["ann", "bob"], "second", ttl_seconds=100)
        assert not cache.exists(ann, bob)

    def test_a_mark_that_is_gone_leaves_no_generation_that_a_rebuild_planted_meanwhile(
        self, cache: redis.Redis
    ) -> None:
        key = user_state.view_key("v", "ann")
        cache.hset(key, mapping={"gen": "planted", "d:other": "0"})
        dirty_marks.clear(cache, "v", ["ann"], "evicted", ttl_seconds=100)
        assert cache.hget(key, "gen") != b"planted"
        assert cache.hget(key, "d:other") == b"0"


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
        assert set(cache.hgetall(key())) == {b"gen", b"view", b"server"}

    def test_a_writer_that_sleeps_past_its_lease_cannot_commit(
        self,
        engine: Engine,
        cache: redis.Redis,
        read_view: ReadView,
        postgres_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        assert dirty_marks.IDLE_SECONDS < user_state.LEASE_SECONDS
        monkeypatch.setattr(dirty_marks, "IDLE_SECONDS", 1)
        commit = engine.dialect.do_commit

        def commit_late(raw: Any) -> None:
            asked, deadline = "select exists (select from pg_stat_activity where pid = %s)", time.monotonic() + 60
            with closing(psycopg2.connect(postgres_url)) as other, other.cursor() as cursor:
                other.autocommit = True
                while cursor.execute(asked, (raw.dbapi_connection.info.backend_pid,)) or cursor.fetchone()[0]:
                    assert time.monotonic() < deadline, "Postgres lets it sleep"
                    time.sleep(0.1)
            commit(raw)

        monkeypatch.setattr(engine.dialect, "do_commit", commit_late)
        change(engine, cache, expect=Unavailable)
        monkeypatch.undo()
        assert read_view("ann").interactions == 0


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
