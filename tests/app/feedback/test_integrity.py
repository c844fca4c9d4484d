"""Interactions and likes name users and items that exist, though no foreign key says so (docs/decisions/0016, 0022)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from app.catalog.users import hash_of
from app.erasure import Tombstone, erase_again, erase_user
from app.feedback.ingest import Ingest
from app.importers.movietweetings import import_movietweetings
from tests.app.feedback.examples import an_event

ORPHANS = """
    SELECT count(*) FROM (
        SELECT user_row, item_row FROM interactions UNION ALL SELECT user_row, item_row FROM on_screen
        UNION ALL SELECT user_row, item_row FROM likes
    ) AS past
    WHERE NOT EXISTS (SELECT FROM users WHERE users.row = user_row)
       OR NOT EXISTS (SELECT FROM items WHERE items.row = item_row)
"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
DEADLINE_SECONDS = 60


def count(engine: Engine, statement: str) -> int:
    with engine.connect() as db:
        return int(db.execute(text(statement)).scalar_one())


@contextmanager
def claimed(engine: Engine, event_id: str) -> Iterator[None]:
    """Another transaction is about to store this event, so who stores it too waits in the midst of storing."""
    with engine.connect() as db, db.begin() as transaction:
        db.execute(text("INSERT INTO event_ids (event_id) VALUES (:id)"), {"id": event_id})
        yield
        transaction.rollback()


def await_waiting(engine: Engine, under_way: list[Future[object]], waiting: int) -> None:
    """Until so many sessions wait for a lock, or somebody who should be waiting is done."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while count(engine, WAITING) < waiting and not any(each.done() for each in under_way):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.02)


@pytest.fixture
def store(request: pytest.FixtureRequest, ingest: Ingest, engine: Engine, tmp_path: Path) -> Callable[[], object]:
    """Stores one event of the user `1`, always the same; `ingest` remembers the rows of user and item already."""
    if request.param == "ingest":

        def submit() -> object:
            return ingest.submit_blocking([an_event("1", "2", "like", event_id="e1")])

        for _ in range(2):  # what a transaction makes is remembered once it is met again
            submit()
        known = ingest.first.connection().info["segue_rows"]
        assert (set(known.users), set(known.items)) == ({"1"}, {"2"})
        return submit
    for name, line in (
        ("ratings.dat", "1::2::9::1400000000"),
        ("movies.dat", "2::Dune (1984)::Drama"),
        ("users.dat", "1::7"),
    ):
        (tmp_path / name).write_text(line + "\n")
    return lambda: import_movietweetings(engine, tmp_path)


@pytest.mark.parametrize("store", ["ingest", "import"], indirect=True)
def test_a_user_is_not_erased_while_an_event_is_being_stored(
    store: Callable[[], object], ingest: Ingest, engine: Engine
) -> None:
    store()  # once, to learn the event's id and so that the ids of user and item are known
    with engine.begin() as db:
        event_id = db.execute(text("SELECT event_id FROM interactions")).scalar_one()
        db.execute(text("TRUNCATE event_ids, interactions, imports"))
    with ThreadPoolExecutor() as pool:
        with claimed(engine, event_id):
            storing: Future[object] = pool.submit(store)
            await_waiting(engine, [storing], 1)
            erasing: Future[object] = pool.submit(erase_user, engine, ingest.views, "1")
            await_waiting(engine, [storing, erasing], 2)
        storing.result()
        erasing.result()
    assert count(engine, "SELECT count(*) FROM users") == 0
    assert count(engine, ORPHANS) == 0


def test_a_list_of_erasures_is_not_applied_while_an_event_is_being_stored(ingest: Ingest, engine: Engine) -> None:
    long_ago = Tombstone(hash_of("1"), datetime(2020, 1, 1, tzinfo=UTC))
    with ThreadPoolExecutor() as pool:
        with claimed(engine, "e1"):
            storing: Future[object] = pool.submit(ingest.submit_blocking, [an_event("1", "2", event_id="e1")])
            await_waiting(engine, [storing], 1)
            applying: Future[object] = pool.submit(erase_again, engine, ingest.views, [long_ago])
            await_waiting(engine, [storing, applying], 2)
            assert not applying.done()
        storing.result()
        applying.result()


def test_erasures_beside_writers_leave_nothing_that_points_nowhere(ingest: Ingest, engine: Engine) -> None:
    kinds = ("like", "view", "impression", "hide")

    def write(number: int) -> None:
        for n in range(25):
            ingest.submit_blocking([an_event(f"u{(number + n) % 3}", f"i{n % 4}", kinds[n % 4], minute=None)])

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        erasures = [pool.submit(erase_user, engine, ingest.views, f"u{n % 3}") for n in range(6)]
        for writer in writers:
            writer.result()
        for erasure in erasures:
            erasure.result()
    assert count(engine, ORPHANS) == 0
