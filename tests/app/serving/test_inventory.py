"""A request is never answered from older rules than it was told of, and always answered."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from weakref import ref

import numpy as np
import pytest
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from app.catalog import versions
from app.feedback import cache_version
from app.feedback.user_view import UserView
from app.resources import _spared_collection
from app.serving import breaker, inventory
from app.serving.inventory import InventoryHost
from app.serving.pipeline import Ask, build_query
from app.serving.retrieve import retrieve
from app.settings import Settings
from app.storage import keys
from models.live.state import LiveState
from tests.patience import until


@pytest.fixture
def host(engine: Engine, redis_url: str, tmp_path: Path) -> Iterator[InventoryHost]:
    with redis.Redis.from_url(redis_url) as cache:
        yield InventoryHost(engine, cache, Settings(data_dir=tmp_path), LiveState())


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does something else for two seconds is no Postgres that is away."""
    monkeypatch.setattr(inventory, "CATCH_UP_SECONDS", 60.0)


def changed_rules(engine: Engine) -> dict[str, str]:
    with engine.begin() as db:
        versions.bump(db, "rules")
        return versions.read(db)


def _add_item(engine: Engine, item_id: str) -> None:
    with engine.begin() as db:
        db.execute(text("insert into items (item_id, categories) values (:id, '{}')"), {"id": item_id})


def test_a_refresh_that_began_before_the_change_does_not_count_for_it(
    host: InventoryHost, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = host.refresh

    def slow() -> None:
        refresh()
        time.sleep(0.3)

    monkeypatch.setattr(host, "refresh", slow)
    before = changed_rules(engine)

    async def scenario() -> None:
        early = asyncio.create_task(host.caught_up(before))
        await asyncio.sleep(0.15)
        after = await asyncio.to_thread(changed_rules, engine)
        late = await host.caught_up(after)
        await early
        assert late.versions["rules"] == after["rules"]

    asyncio.run(scenario())


def test_without_postgres_the_last_inventory_serves_and_says_so(
    host: InventoryHost, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = changed_rules(engine)
    asked = []

    def fail() -> None:
        asked.append(1)
        time.sleep(0.1)
        raise OperationalError("select", {}, Exception("away"))

    with monkeypatch.context() as away:
        away.setattr(host, "refresh", fail)
        # Else a moment in which the machine does something else would be rest enough.
        away.setattr(breaker, "REST_PER_SECOND", 36_000)
        away.setattr(breaker, "LONGEST_REST_SECONDS", 3_600.0)
        for _ in range(3):
            assert asyncio.run(host.caught_up(known)).is_stale
    assert len(asked) == 1, "a dead Postgres is not asked by every request"
    host._postgres._not_before = 0.0  # the rest is over
    until(lambda: not asyncio.run(host.caught_up(known)).is_stale)


def test_without_an_answer_in_time_the_last_inventory_serves(
    host: InventoryHost, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(inventory, "CATCH_UP_SECONDS", 0.05)
    monkeypatch.setattr(host, "refresh", over.wait)

    async def scenario() -> None:
        try:
            assert (await host.caught_up(changed_rules(engine))).is_stale
        finally:
            over.set()

    asyncio.run(scenario())


def test_who_has_not_looked_lately_looks_before_answering(
    host: InventoryHost, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis was away when the rules changed, so it tells nothing of it."""
    rules = changed_rules(engine)["rules"]
    monkeypatch.setattr(cache_version, "TRUST_SECONDS", 3_600.0)
    assert asyncio.run(host.caught_up(None)).versions["rules"] != rules
    monkeypatch.setattr(cache_version, "TRUST_SECONDS", 0.0)
    assert asyncio.run(host.caught_up(None)).versions["rules"] == rules


def test_what_owes_an_answer_is_waited_for_once(host: InventoryHost, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = [], threading.Event()

    def hang() -> bool:
        asked.append(1)
        return over.wait()

    monkeypatch.setattr(cache_version, "TRUST_SECONDS", 0.0)
    monkeypatch.setattr(inventory, "CATCH_UP_SECONDS", 0.05)
    monkeypatch.setattr(host, "refresh", hang)

    async def scenario() -> None:
        try:
            for _ in range(5):
                assert not (await host.caught_up(None)).is_stale
        finally:
            over.set()

    asyncio.run(scenario())
    assert len(asked) == 1


def test_a_key_is_known_after_it_was_made_and_unknown_after_it_was_revoked(host: InventoryHost, engine: Engine) -> None:
    assert host.current.keys.is_open
    with engine.begin() as db:
        key = keys.create(db, actor="tests", name="app", scopes=["read"])
    host.refresh()
    assert host.current.keys.find(key) is not None
    with engine.begin() as db:
        keys.revoke(db, actor="tests", name="app")
    host.refresh()
    assert host.current.keys.find(key) is None
    assert not host.current.keys.is_open, "revoking the last key must not open the door"


@pytest.mark.parametrize("looping", ["damaged", "damaged/content.npy"])
def test_a_release_that_can_not_even_be_looked_at_leaves_everything_else_fresh(
    host: InventoryHost, engine: Engine, tmp_path: Path, looping: str
) -> None:
    """A link that leads to itself, here; a disk that fails, or a folder that belongs to somebody else, is the same."""
    link = tmp_path / "releases" / looping
    link.parent.mkdir(parents=True)
    link.symlink_to(link.name)
    (tmp_path / "releases" / "current").write_text("damaged")
    known = changed_rules(engine)
    host.refresh()
    assert host.current.versions["rules"] == known["rules"]
    assert "damaged" in str(host.models.failure)


def test_a_release_that_breaks_in_an_unforeseen_way_leaves_everything_else_fresh(
    host: InventoryHost, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("database_id")

    monkeypatch.setattr("app.serving.model_host.load_checked", breaks)
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "current").write_text("damaged")
    known = changed_rules(engine)
    host.refresh()
    assert host.current.versions["rules"] == known["rules"]
    assert "damaged" in str(host.models.failure)


def test_the_first_release_is_gone_once_another_is_served(host: InventoryHost, engine: Engine) -> None:
    """Though the collector of cycles passes over what was there when it began to serve: nothing must hold it."""
    _add_item(engine, "first")
    host.refresh()
    view = replace(UserView.empty(), seen=np.zeros(1, np.int32))
    with _spared_collection():
        release = host.current.release
        query = build_query(Ask("ann", 10), view, host.current)
        assert retrieve(release, tuple(release.recommenders), query).leader
        parts = [
            ref(part) for part in (host.current.showable, release.rows.position_of_row, *release.recommenders.values())
        ]
        del release, query
        _add_item(engine, "second")
        host.refresh()
        gc.collect()
        assert all(part() is None for part in parts)
