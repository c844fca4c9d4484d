"""No reader is answered from an outdated view, in whatever order writers and rebuilds take their steps."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import redis
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from app.catalog import rows, versions
from app.feedback import user_state
from app.feedback.dirty_marks import ViewWriter
from app.feedback.event_log import store
from app.feedback.ingest import Ingest
from app.feedback.user_state import UserView
from tests.app.feedback.examples import an_event
from tests.app.feedback.stage import Stage
from tests.app.feedback.writers import Crash, change, crash, short_wait

ReadView = Callable[[str], UserView]


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
        monkeypatch.setattr(ViewWriter, "_finish", crash)
        commit = engine.dialect.do_commit

        def rebuild_then_commit(connection: object) -> None:
            monkeypatch.setattr(engine.dialect, "do_commit", commit)
            monkeypatch.setattr(
                user_state, "interpret", lambda _, server, __: user_state.View(None, server, None, True)
            )
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
