"""What was shown is written, whatever its neighbours in the batch are like."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text

from app import telemetry
from app.catalog.users import hash_of
from app.feedback.dirty_marks import ERASURE_LOCK
from app.serving import impressions as impressions_module
from app.serving.exploration import Sampler
from app.serving.impressions import LINGER_SECONDS, Impression, ImpressionWriter
from app.serving.slate import Shown
from app.storage.tables import impressions
from models.contracts import Reason
from tests.patience import until

WAITING = text(
    "select count(*) from pg_locks join pg_database on pg_database.oid = pg_locks.database"
    " where locktype = 'advisory' and not granted and datname = current_database()"
)
SHOWN = Impression("a", datetime.now(UTC), "ann", "feed", "new", "popularity", None, {}, 1, ())


def written(engine: Engine, *shown: Impression) -> set[str]:
    writer = ImpressionWriter(engine, capacity=100)
    for impression in shown:
        writer.record(impression)
    writer.close()
    with engine.connect() as db:
        return set(db.execute(select(impressions.c.request_id)).scalars())


def test_an_impression_that_cannot_be_stored_is_lost_alone(engine: Engine) -> None:
    assert written(engine, SHOWN, SHOWN._replace(request_id="bad", surface="\0"), SHOWN._replace(request_id="b")) == {
        "a",
        "b",
    }


def test_a_connection_lost_in_mid_transaction_is_tried_again(engine: Engine) -> None:
    ended: list[int] = []

    @event.listens_for(engine, "after_cursor_execute")
    def cut_off(db: Connection, cursor: Any, statement: str, *_: object) -> None:
        if "pg_advisory" in statement and not ended:
            ended.append(cursor.connection.info.backend_pid)
            with engine.connect() as other:
                other.execute(text("select pg_terminate_backend(:pid, 5000)"), {"pid": ended[0]})

    assert written(engine, SHOWN) == {"a"}
    assert ended


def test_what_is_shown_while_postgres_takes_nothing_is_written_later(engine: Engine) -> None:
    """As a replica it is for a while, here; gone, hung or full, it is the same."""
    writer = ImpressionWriter(engine, capacity=100)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        name = db.scalar(text("select current_database()"))
        db.execute(text(f'alter database "{name}" set default_transaction_read_only = on'))
        engine.dispose()
        try:
            for number in range(5):
                writer.record(SHOWN._replace(request_id=str(number)))
                until(lambda: writer._is_failing)
        finally:
            db.execute(text("set default_transaction_read_only = off"))
            db.execute(text(f'alter database "{name}" reset default_transaction_read_only'))
            engine.dispose()
    until(lambda: writer.queued == 0 and not writer._is_failing)
    writer.close()
    with engine.connect() as db:
        assert db.scalar(select(func.count()).select_from(impressions)) == 5


def test_what_waits_beyond_the_bound_is_lost_and_counted_and_nobody_waits(engine: Engine) -> None:
    lost = telemetry.IMPRESSIONS_LOST.labels("")
    before = lost._value.get()
    writer = ImpressionWriter(engine, capacity=2)
    with engine.begin() as db:
        db.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": ERASURE_LOCK})
        writer.record(SHOWN._replace(request_id="under way"))
        until(lambda: bool(db.scalar(WAITING)))
        for number in range(5):
            writer.record(SHOWN._replace(request_id=str(number)))
        assert (writer.queued, lost._value.get() - before) == (2, 3)
    writer.close()
    with engine.connect() as db:
        assert set(db.execute(select(impressions.c.request_id)).scalars()) == {"under way", "0", "1"}


def test_full_batches_are_written_without_waiting_for_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impressions_module, "BATCH", 5)
    writer, lingered = ImpressionWriter(engine, capacity=100), []
    with engine.begin() as db:
        db.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": ERASURE_LOCK})
        writer.record(SHOWN._replace(request_id="under way"))
        until(lambda: bool(db.scalar(WAITING)))
        monkeypatch.setattr(writer._closing, "wait", lingered.append)
        for number in range(14):
            writer.record(SHOWN._replace(request_id=str(number)))
    until(lambda: writer.queued == 0)
    writer.close()
    assert lingered == [LINGER_SECONDS], "once, for the four that are no batch"


def test_what_an_erased_user_saw_before_does_not_come_back(engine: Engine) -> None:
    with engine.begin() as db:
        db.execute(text("insert into tombstones (user_hash) values (:hash)"), {"hash": hash_of("ann")})
    assert written(engine, SHOWN, SHOWN._replace(request_id="b", user_id="bob")) == {"b"}


def test_a_drawn_slate_is_stored_with_what_it_was_drawn_from_and_others_without(engine: Engine) -> None:
    draw = Sampler(0.5, "drawn").draw([Shown(row, 3.0 - row, "blend", False, Reason("taste")) for row in range(3)])
    pin = Shown(9, 0.0, "promotion", True, Reason("promoted"))
    drawn = SHOWN._replace(request_id="drawn", slate_id="drawn", items=(pin, *draw.ranking[:2]), draw=draw)
    pin_only = SHOWN._replace(request_id="pin", slate_id="pin", items=(pin,), draw=draw)
    following = SHOWN._replace(request_id="following", slate_id="drawn", items=draw.ranking[2:], first_position=4)
    written(engine, SHOWN, pin_only, drawn, following)
    with engine.connect() as db:
        rows = {row.request_id: row for row in db.execute(select(impressions))}
    assert (rows["a"].propensities, rows["a"].exploration) == (None, None)
    assert rows["pin"].propensities == [None]
    assert rows["drawn"].propensities == [None, *(pytest.approx(s.propensity) for s in draw.ranking[:2])]
    assert rows["drawn"].exploration == {
        "slate_id": "drawn",
        "draw": {
            "policy": "plackett_luce", "temperature": 0.5, "candidates": [0, 1, 2], "logits": list(draw.logits),
            "scores": [3.0, 2.0, 1.0],
        },
    }  # fmt: skip
    assert rows["following"].propensities == [1.0]
    assert rows["following"].exploration == {"slate_id": "drawn"}
