"""Events of users and items whose rows a writer remembers: stored without a look-up, and never for who is gone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from app.catalog import items, users
from app.catalog.users import User, hash_of
from app.erasure import Tombstone, erase_again, erase_user
from app.feedback import known_rows
from app.feedback.event_log import store
from app.feedback.ingest import Ingest
from app.feedback.known_rows import KnownRows
from tests.app.feedback.examples import an_event
from tests.app.feedback.test_integrity import ORPHANS, count

STORED = """
    SELECT user_id, item_id, interactions.kind FROM interactions
    JOIN users ON users.row = user_row JOIN items ON items.row = item_row ORDER BY seq
"""
SEARCHES = "SELECT sum(idx_scan) FROM pg_stat_xact_user_tables WHERE relname IN ('users', 'items', 'tombstones')"


@pytest.fixture
def db(engine: Engine) -> Iterator[Connection]:
    """A writer's connection, which remembers ann, bob, dune and emma."""
    with engine.connect() as kept:
        for _ in range(2):  # what a transaction makes is remembered once it is met again
            write(kept, ("ann", "dune", "view"), ("bob", "emma", "view"))
        assert (set(known(kept).users), set(known(kept).items)) == ({"ann", "bob"}, {"dune", "emma"})
        yield kept


def known(db: Connection) -> KnownRows:
    found: KnownRows = db.info["segue_rows"]
    return found


def write(db: Connection, *events: tuple[str, str, str]) -> None:
    with db.begin():
        store(db, [[an_event(*event, minute=None) for event in events]], auto_create=True)


def stored(engine: Engine) -> list[tuple[str, str, str]]:
    with engine.connect() as db:
        return [(user, item, kind) for user, item, kind in db.execute(text(STORED))]


def test_what_is_remembered_is_not_looked_up(db: Connection, engine: Engine) -> None:
    with db.begin():
        before = db.execute(text(SEARCHES)).scalar_one()
        store(db, [[an_event("bob", "dune", "click"), an_event("ann", "emma", "impression")]], auto_create=False)
        assert db.execute(text(SEARCHES)).scalar_one() == before
    assert stored(engine)[4:] == [("bob", "dune", "click")]
    assert count(engine, ORPHANS) == 0


def test_some_are_remembered_and_some_are_not(db: Connection, engine: Engine) -> None:
    with engine.begin() as other:
        users.put(other, [User("eve", {}, [])])
    write(db, ("eve", "dune", "like"), ("ann", "dune", "like"))
    assert stored(engine)[4:] == [("eve", "dune", "like"), ("ann", "dune", "like")]
    assert set(known(db).users) == {"ann", "bob", "eve"}


def test_who_is_erased_is_not_remembered(db: Connection, engine: Engine, ingest: Ingest) -> None:
    erase_user(engine, ingest.views, "ann")
    write(db, ("ann", "dune", "like"), ("bob", "dune", "like"))
    write(db, ("bob", "dune", "view"))
    assert {user for user, _, _ in stored(engine)} == {"bob"}
    assert count(engine, ORPHANS) == 0
    assert set(known(db).users) == {"bob"}


def test_who_comes_back_has_another_row(db: Connection, engine: Engine, ingest: Ingest) -> None:
    erase_user(engine, ingest.views, "ann")
    with engine.begin() as other:
        users.put(other, [User("ann", {}, [])])
    for kind in ("click", "like"):
        write(db, ("ann", "dune", kind))
    assert stored(engine)[-2:] == [("ann", "dune", "click"), ("ann", "dune", "like")]
    assert count(engine, ORPHANS) == 0
    assert "ann" not in known(db).users


def test_who_came_back_after_a_listed_erasure_is_not_remembered(db: Connection, engine: Engine, ingest: Ingest) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert erase_again(engine, ingest.views, [Tombstone(hash_of("ann"), yesterday)]) == 0
    with db.begin():
        of_the_erased_life = an_event("ann", "dune", "like")
        store(db, [[of_the_erased_life, an_event("bob", "dune", "click", minute=None)]], auto_create=True)
    assert stored(engine)[4:] == [("bob", "dune", "click")]
    assert "ann" not in known(db).users


def test_a_deleted_item_keeps_its_row(db: Connection, engine: Engine) -> None:
    with engine.begin() as other:
        items.delete(other, "dune")
    write(db, ("ann", "dune", "click"))
    assert stored(engine)[-1] == ("ann", "dune", "click")


def test_what_was_rolled_back_is_not_remembered(db: Connection, engine: Engine) -> None:
    with db.begin() as transaction:
        store(db, [[an_event("eve", "frank")]], auto_create=True)
        transaction.rollback()
    write(db, ("eve", "frank", "click"))
    assert stored(engine)[-1] == ("eve", "frank", "click")
    assert count(engine, ORPHANS) == 0


def test_memory_is_bounded(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_rows, "MOST_ROWS", 3)
    for n in range(10):
        for _ in range(2):
            write(db, (f"u{n}", f"i{n}", "view"))
    assert len(known(db).users) <= 4
    assert len(known(db).items) <= 4
