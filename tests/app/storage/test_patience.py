"""A server that hangs is not waited for for ever. The hanging itself is tested in tests/service."""

import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from app.storage.database import open_engine
from app.storage.patience import WatchedConnection, be_patient, cut_off, patient_for

LIMIT = 1.0
LONG_LIMIT = 5.0
"""Where nothing may be cut off: a machine that does something else for seconds is a server that hangs, too."""


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    opened = open_engine(postgres_url, statement_timeout_seconds=60)
    opened.connect().close()  # a first connection asks the server this and that
    opened.dispose()
    with patient_for(opened, LIMIT):
        yield opened
    opened.dispose()


def test_who_waits_too_long_is_told_and_the_next_connection_is_a_good_one(engine: Engine) -> None:
    began = time.monotonic()
    with pytest.raises(OperationalError), engine.connect() as db:
        db.execute(text("select pg_sleep(60)"))
    assert time.monotonic() - began < 50
    with engine.connect() as db:
        be_patient(db)  # a machine may well do something else for a second
        assert db.execute(text("select 1")).scalar_one() == 1


def test_who_waits_in_turns_or_not_at_all_is_not_cut_off(postgres_url: str) -> None:
    """One waits again and again, each time for a fifth of the limit, the other does nothing for longer than it."""
    engine = open_engine(postgres_url, statement_timeout_seconds=60)
    with patient_for(engine, LONG_LIMIT), engine.connect() as idle, engine.connect() as busy:
        idle.execute(text("select 1"))
        for _ in range(6):
            busy.execute(text("select pg_sleep(:seconds)"), {"seconds": LONG_LIMIT / 5})
        for db in (idle, busy):
            assert db.execute(text("select 1")).scalar_one() == 1
            db.commit()
    engine.dispose()


def test_a_patient_connection_waits_on(engine: Engine) -> None:
    with engine.connect() as db:
        be_patient(db)
        db.execute(text("select pg_sleep(2)"))


def test_what_goes_wrong_leaves_nothing_waiting(engine: Engine) -> None:
    with engine.connect() as db:
        be_patient(db)
        with pytest.raises(Exception, match="division"):
            db.execute(text("select 1 / 0"))
        connection = db.connection.dbapi_connection
        assert isinstance(connection, WatchedConnection)
        assert connection.waits_since is None


def test_another_thread_can_end_the_waiting(engine: Engine) -> None:
    db = engine.connect()
    be_patient(db)
    threading.Timer(0.3, cut_off, [db]).start()
    with pytest.raises(OperationalError):
        db.execute(text("select pg_sleep(60)"))
    db.close()
