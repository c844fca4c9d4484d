"""A server that hangs is not waited for for ever. The hanging itself is tested in tests/service."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from app.storage.database import open_engine
from app.storage.patience import WatchedConnection, be_patient, cut_off, patient_for

LIMIT = 1.0
TRIES = 5


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    opened = open_engine(postgres_url, statement_timeout_seconds=60)
    with patient_for(opened, LIMIT):
        yield opened
    opened.dispose()


def test_who_waits_too_long_is_told_and_the_next_connection_is_a_good_one(engine: Engine) -> None:
    began = time.monotonic()
    with pytest.raises(OperationalError), engine.connect() as db:
        db.execute(text("select pg_sleep(60)"))
    assert time.monotonic() - began < 50
    with engine.connect() as db:
        assert db.execute(text("select 1")).scalar_one() == 1


def goes_well(engine: Engine, work: Callable[[Connection], object]) -> bool:
    """Once in some tries: a machine that does something else for a second is a server that hangs, too."""
    for _ in range(TRIES):
        with suppress(OperationalError), engine.connect() as db:
            work(db)
            db.commit()
            return True
    return False


def test_waiting_in_turns_is_not_waiting_long(engine: Engine) -> None:
    assert goes_well(engine, lambda db: [db.execute(text("select pg_sleep(0.4)")) for _ in range(4)])


def test_an_idle_connection_waits_for_nothing(engine: Engine) -> None:
    assert goes_well(engine, lambda db: (db.execute(text("select 1")), time.sleep(2 * LIMIT)))


def test_a_patient_connection_waits_on(engine: Engine) -> None:
    with engine.connect() as db:
        be_patient(db)
        db.execute(text("select pg_sleep(2)"))


def test_what_goes_wrong_leaves_nothing_waiting(engine: Engine) -> None:
    with engine.connect() as db:
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
