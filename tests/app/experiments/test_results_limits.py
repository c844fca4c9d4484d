"""What a result may take from those who are served meanwhile: time, connections, a turn."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from app.api.admin_experiment_results import ResultsQuery
from app.errors import NotFound, Unavailable
from app.experiments import outcomes, results
from app.experiments.course import course_of
from app.experiments.results import results_of
from app.storage.copy_out import copy_out
from app.storage.patience import WatchedConnection, patient_for
from tests.app.experiments.examples import CONTROL, DAY, START, TREATMENT, add_experiment, expose


@pytest.fixture
def stopped(engine: Engine) -> Engine:
    """An experiment that has ended, in which nobody did anything."""
    with engine.begin() as db:
        add_experiment(db, stopped_at=START + 10 * DAY)
        for variant in (CONTROL, TREATMENT):
            expose(db, f"{variant} 1", f"{variant} 2", variant=variant)
    return engine


def test_a_result_that_takes_too_long_is_given_up(stopped: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LONGEST_SECONDS", 0.05)
    with pytest.raises(Unavailable, match="shorter window"), results.reading(stopped) as db:
        db.exec_driver_sql("select pg_sleep(5)")


def test_all_statements_of_a_result_have_one_deadline(stopped: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would end in time if it had the time to itself."""
    monkeypatch.setattr(results, "LONGEST_SECONDS", 2)
    naps: list[float] = []
    with pytest.raises(Unavailable, match="longer than 2 s"), results.reading(stopped) as db:
        nap(db, naps)
    assert len(naps) < 4


def nap(db: Connection, naps: list[float]) -> None:
    for _ in range(20):
        db.exec_driver_sql("select pg_sleep(0.5)")
        naps.append(0.5)


def test_what_is_copied_out_has_the_same_deadline(stopped: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    def noted(db: Connection, *arguments: Any) -> Any:
        cursor = db.connection.cursor()  # past SQLAlchemy, like the COPY
        cursor.execute("select setting::int from pg_settings where name = 'statement_timeout'")
        left.append(cursor.fetchone()[0])
        db.exec_driver_sql("select pg_sleep(0.3)")
        return copy_out(db, *arguments)

    monkeypatch.setattr(outcomes, "copy_out", noted)
    results_of(stopped, ResultsQuery(metric=["likes_per_user", "ctr"]).ask("feed"))

    of_users, of_slates = left
    assert of_slates <= of_users - 300
    assert of_users < results.LONGEST_SECONDS * 1000


def test_more_results_than_may_be_at_once_are_told_to_come_back(stopped: Engine) -> None:
    ask = ResultsQuery(window="1d").ask("feed")
    with ExitStack() as others:
        for _ in range(results.MOST_AT_ONCE):
            others.enter_context(results.one_of_few())
        for refused in (results_of, course_of):
            with pytest.raises(Unavailable, match="2 results are being worked out") as caught:
                refused(stopped, ask)
            assert caught.value.retry_after == 10
    with pytest.raises(NotFound):
        results_of(stopped, ResultsQuery().ask("other"))
    for _ in range(results.MOST_AT_ONCE + 1):
        assert results_of(stopped, ask).key == "feed"


def test_requests_get_no_connection_that_waits_for_ever(engine: Engine) -> None:
    with patient_for(engine, 120):
        with results.reading(engine) as db:
            assert connection_of(db).is_patient
            pid = connection_of(db).info.backend_pid
        with engine.connect() as db:
            assert not connection_of(db).is_patient
            assert connection_of(db).info.backend_pid != pid


def connection_of(db: Connection) -> WatchedConnection:
    connection = db.connection.dbapi_connection
    assert isinstance(connection, WatchedConnection)
    return connection
