"""What was shown is written, whatever its neighbours in the batch are like."""

from dataclasses import replace
from datetime import UTC, datetime

import psycopg2
import pytest
from sqlalchemy import Engine, select, text

from app.catalog.users import hash_of
from app.serving import impressions as writing
from app.serving.impressions import Impression, ImpressionWriter
from app.storage.tables import impressions

SHOWN = Impression("a", datetime.now(UTC), "ann", "feed", "new", "popularity", None, {}, 1, ())


def written(engine: Engine, *shown: Impression) -> set[str]:
    writer = ImpressionWriter(engine, capacity=100)
    for impression in shown:
        writer.record(impression)
    writer.close()
    with engine.connect() as db:
        return set(db.execute(select(impressions.c.request_id)).scalars())


def test_an_impression_that_cannot_be_stored_is_lost_alone(engine: Engine) -> None:
    assert written(engine, SHOWN, replace(SHOWN, request_id="bad", surface="\0"), replace(SHOWN, request_id="b")) == {
        "a",
        "b",
    }


def test_a_connection_lost_in_mid_statement_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failures = writing.execute_values, [psycopg2.OperationalError("server closed the connection")]

    def cut_off(*arguments: object, **options: object) -> None:
        if failures:
            raise failures.pop()
        write(*arguments, **options)

    monkeypatch.setattr(writing, "execute_values", cut_off)
    assert written(engine, SHOWN) == {"a"}


def test_what_an_erased_user_saw_before_does_not_come_back(engine: Engine) -> None:
    with engine.begin() as db:
        db.execute(text("insert into tombstones (user_hash) values (:hash)"), {"hash": hash_of("ann")})
    assert written(engine, SHOWN, replace(SHOWN, request_id="b", user_id="bob")) == {"b"}
