"""What is read of the interactions: what is new and what it changes, or one user, however much else there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, text

from app.erasure import ERASE
from app.feedback.interactions import page
from app.feedback.likes import deciding_event
from app.feedback.user_state import load
from app.live import log
from app.settings import DEFAULT_WEIGHTS, Settings
from models.live.state import LiveState
from tests.transactions import await_all_before

MANY = 5_000
READ = """
    SELECT sum(seq_tup_read), sum(idx_tup_fetch) FROM pg_stat_xact_user_tables
    WHERE relname IN ('interactions', 'event_ids')
"""


@pytest.fixture
def watermark(engine: Engine) -> int:
    """Behind the many events of a user on one day, each on an item of its own, and before a single one of today."""
    with engine.begin() as db:
        db.execute(text("INSERT INTO users (user_id) VALUES ('ann')"))
        db.execute(
            text("INSERT INTO items (item_id) SELECT 'i' || n FROM generate_series(1, :many) AS n"), {"many": MANY}
        )
        events = """
            INSERT INTO interactions (event_id, user_row, item_row, kind, timestamp)
            SELECT item_id, users.row, items.row, 'click', now() FROM users, items
        """
        db.execute(text(events))
    await_all_before(engine)
    with engine.connect() as db:
        latest = log.look(db, 0).latest
    with engine.begin() as db:
        db.execute(text(events.replace("SELECT item_id", "SELECT 'new'") + " WHERE item_id = 'i7'"))
    await_all_before(engine)
    return latest


@contextmanager
def counting(engine: Engine) -> Iterator[tuple[Connection, Counter[str]]]:
    """A connection, and how many rows of events were read by it one after the other, and how many by an index."""
    with engine.connect() as db:
        before, read = db.execute(text(READ)).one(), Counter[str]()
        yield db, read
        after = db.execute(text(READ)).one()
        read.update({"in turn": after[0] - before[0], "by index": after[1] - before[1]})


def analyze(engine: Engine) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as db:
        db.execute(text("ANALYZE"))


@pytest.mark.parametrize("analyzed", [False, True])
def test_what_is_new_is_read_without_the_rest_of_the_log(engine: Engine, watermark: int, analyzed: bool) -> None:
    if analyzed:
        analyze(engine)
    with counting(engine) as (db, read):
        horizon = log.look(db, watermark)
        found = log.changes(db, DEFAULT_WEIGHTS, LiveState(), horizon, since=watermark)
    assert horizon.fresh
    assert not horizon.held_back
    assert len(found.visit_users) == 1
    assert read["in turn"] == 0
    assert read["by index"] < 20


def test_nothing_new_is_seen_without_reading_the_log(engine: Engine, watermark: int) -> None:
    with engine.connect() as db:
        latest = log.look(db, watermark).latest
    with counting(engine) as (db, read):
        assert not log.look(db, latest).fresh
    assert read["in turn"] == 0
    assert read["by index"] < 5


READERS: dict[str, Callable[[Connection], object]] = {
    "view": lambda db: load(db, "u7", Settings()),
    "list": lambda db: page(db, "u7", limit=10),
    "like": lambda db: deciding_event(db, "u7", "i7", liked=True),
    "erasure of ids": lambda db: db.exec_driver_sql(ERASE["event_ids"], {"row": 7}),
    "erasure": lambda db: db.exec_driver_sql(ERASE["interactions"], {"row": 7}),
}


@pytest.mark.parametrize("reader", READERS)
def test_one_user_is_read_without_the_others(engine: Engine, reader: str) -> None:
    with engine.begin() as db:
        for table, column, letter in (("users", "user_id", "u"), ("items", "item_id", "i")):
            rows = f"INSERT INTO {table} ({column}) SELECT '{letter}' || n FROM generate_series(1, :many) AS n"
            db.execute(text(rows), {"many": MANY})
        db.execute(
            text(
                "INSERT INTO interactions (event_id, user_row, item_row, kind, timestamp)"
                " SELECT n, n % :many, n * 7 % :many, 'view', now() FROM generate_series(1, 3 * :many) AS n"
            ),
            {"many": MANY},
        )
        db.execute(text("INSERT INTO event_ids (event_id) SELECT event_id FROM interactions"))
    analyze(engine)
    with counting(engine) as (db, read):
        READERS[reader](db)
    assert read["in turn"] == 0
    assert read["by index"] < 10
