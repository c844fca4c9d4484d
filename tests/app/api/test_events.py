"""POST /events, as API.md promises it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.api.events import Kind
from app.settings import FEEDBACK_KINDS

EVENT = {"event_id": "e1", "user_id": "ann", "item_id": "dune", "kind": "like"}


def in_minutes(minutes: float) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()


def stored(engine: Engine) -> int:
    with engine.connect() as db:
        return int(db.execute(text("SELECT count(*) FROM interactions")).scalar_one())


def test_one_event_is_accepted(client: TestClient, engine: Engine) -> None:
    answer = client.post("/events", json=EVENT | {"value": None, "timestamp": "2024-11-22T09:30:00+01:00"})
    assert answer.status_code == 202
    assert (answer.json()["accepted"], answer.json()["duplicates"]) == (1, 0)
    assert answer.json()["watermark"].isdigit()
    with engine.connect() as db:
        at = db.execute(text("SELECT timestamp FROM interactions")).scalar_one()
    assert at == datetime(2024, 11, 22, 8, 30, tzinfo=UTC)


def test_an_array_with_a_repetition_counts_it(client: TestClient) -> None:
    batch = [EVENT, EVENT, EVENT | {"event_id": "e2"}]
    first, second = client.post("/events", json=batch).json(), client.post("/events", json=batch).json()
    assert (first["accepted"], first["duplicates"]) == (2, 1)
    assert (second["accepted"], second["duplicates"]) == (0, 3)


def test_an_id_is_minted_where_there_is_none(client: TestClient, engine: Engine) -> None:
    without = {name: value for name, value in EVENT.items() if name != "event_id"}
    assert client.post("/events", json=[without, without]).json()["accepted"] == 2


def test_kinds_are_those_of_the_settings() -> None:
    assert get_args(Kind) == FEEDBACK_KINDS


@pytest.mark.parametrize(
    ("kind", "value", "stored_value"), [("rating", 0, 0), ("rating", 5, 5), ("listen", 0, 0), ("listen", 1.7, 1)]
)
def test_values_in_range(client: TestClient, engine: Engine, kind: str, value: float, stored_value: float) -> None:
    assert client.post("/events", json=EVENT | {"kind": kind, "value": value}).status_code == 202
    with engine.connect() as db:
        assert db.execute(text("SELECT value FROM interactions")).scalar_one() == stored_value


BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("user_id", {"user_id": 7}),
    ("user_id", {"user_id": ""}),
    ("user_id", {"user_id": "a" * 129}),
    ("user_id", {"user_id": "a/b"}),
    ("user_id", {"user_id": "a\0b"}),
    ("user_id", {"user_id": "a\u0085b"}),
    ("user_id", {"user_id": "a\n"}),
    ("item_id", {"item_id": None}),
    ("event_id", {"event_id": ["e"]}),
    ("session_id", {"session_id": "\x7f"}),
    ("request_id", {"request_id": 1.5}),
    ("kind", {"kind": "unlike"}),
    ("kind", {"kind": "LIKE"}),
    ("kind", {"kind": None}),
    ("value", {"kind": "rating"}),
    ("value", {"kind": "rating", "value": 5.1}),
    ("value", {"kind": "rating", "value": -0.1}),
    ("value", {"kind": "rating", "value": "4"}),
    ("value", {"kind": "rating", "value": True}),
    ("value", {"kind": "rating", "value": 10**400}),
    ("value", {"kind": "listen"}),
    ("value", {"kind": "listen", "value": -0.01}),
    ("value", {"kind": "like", "value": 1}),
    ("timestamp", {"timestamp": "2024-11-22T09:30:00"}),
    ("timestamp", {"timestamp": "2024-11-22"}),
    ("timestamp", {"timestamp": 1732267800}),
    ("timestamp", {"timestamp": "1732267800"}),
    ("timestamp", {"timestamp": "2024-13-22T09:30:00Z"}),
    ("timestamp", {"timestamp": "0001-01-01T00:00:00+10:00"}),
    ("timestamp", {"timestamp": "9999-12-31T23:59:59-10:00"}),
    ("timestamp", {"timestamp": "1969-12-31T23:59:59Z"}),
    ("timestamp", {"timestamp": "2999-01-01T00:00:00Z"}),
    ("colour", {"colour": "red"}),
    ("", {"": 1}),
]


@pytest.mark.parametrize(("field", "change"), BAD_FIELDS)
def test_a_wrong_field_is_named(lasting_client: TestClient, field: str, change: dict[str, Any]) -> None:
    answer = lasting_client.post("/events", json=EVENT | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", field]]


def test_a_time_four_minutes_ahead_is_taken(client: TestClient) -> None:
    assert client.post("/events", json=EVENT | {"timestamp": in_minutes(4)}).status_code == 202


def test_a_batch_with_invalid_events_is_refused_whole_with_each_index(client: TestClient, engine: Engine) -> None:
    batch = [EVENT, EVENT | {"user_id": 3}, EVENT | {"event_id": "e3"}, EVENT | {"timestamp": in_minutes(9)}]
    answer = client.post("/events", json=batch)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", 1, "user_id"], ["body", 3, "timestamp"]]
    assert stored(engine) == 0


def test_a_thousand_events_and_no_more(client: TestClient, engine: Engine) -> None:
    batch = [EVENT | {"event_id": f"e{n}"} for n in range(1001)]
    assert client.post("/events", json=batch).status_code == 422
    assert stored(engine) == 0
    assert client.post("/events", json=batch[:1000]).json()["accepted"] == 1000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"user_id": "\\ud800", "item_id": "i", "kind": "like"}',
        b'{"user_id": "u", "item_id": "i", "kind": "rating", "value": NaN}',
        b'{"user_id": "u", "item_id": "i", "kind": "rating", "value": 1e999}',
        b"[" * 100_000,
        b'{"user_id":' * 50_000,
        b'[{"user_id": "u"',
        b"[[]]",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_event_is_a_422(lasting_client: TestClient, body: bytes) -> None:
    answer = lasting_client.post("/events", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_a_form_is_not_json(lasting_client: TestClient) -> None:
    answer = lasting_client.post("/events", data={"user_id": "ann"})
    assert answer.json()["errors"][0]["loc"] == ["header", "content-type"]


def test_the_schema_accepts_its_own_examples_and_knows_the_values(lasting_client: TestClient) -> None:
    operation = lasting_client.get("/openapi.json").json()["paths"]["/events"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    validator = jsonschema_rs.validator_for(body["schema"])
    for example in body["examples"].values():
        validator.validate(example["value"])
        assert lasting_client.post("/events", json=example["value"]).status_code == 202
    assert not validator.is_valid(EVENT | {"kind": "rating"})
    assert not validator.is_valid(EVENT | {"value": 1})
    assert validator.is_valid([EVENT | {"kind": "listen", "value": 0.5}])
