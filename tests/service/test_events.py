"""API.md, Events: one test per promise, over HTTP, against two processes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from app.settings import FEEDBACK_KINDS
from app.storage.database import open_engine
from tests.service.conftest import Service, Stores, running
from tests.service.test_recommend import like, recommend, someone

VALUES = {"rating": 4.5, "listen": 0.8}


def event(user: str, **more: Any) -> dict[str, Any]:
    return {"event_id": uuid4().hex, **like(user, "an-item-of-the-tests"), **more}


def post(service: Service, body: Any) -> dict[str, Any]:
    answer = service.client.post("/events", json=body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def history(service: Service, user_id: str) -> list[dict[str, Any]]:
    answer = service.client.get(f"/users/{user_id}/interactions")
    found: list[dict[str, Any]] = answer.json()["items"] if answer.status_code == 200 else []
    return found


def in_minutes(minutes: float) -> str:
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()


@pytest.fixture(scope="module")
def strict(stores: Stores) -> Iterator[Service]:
    """A process that creates no users or items, and doesn't wait long for Postgres."""
    with running(stores.environment, SEGUE_AUTO_CREATE="false", SEGUE_DATABASE_TIMEOUT_SECONDS="5") as service:
        yield service


def test_what_was_accepted_can_be_read_from_the_other_process(a: Service, b: Service) -> None:
    sent = event(someone(), timestamp="2026-03-14T10:30:00+01:00", session_id="s1", request_id="01JDSQ2Z")
    assert set(post(a, sent)) == {"accepted", "duplicates", "watermark"}
    (stored,) = history(b, sent["user_id"])
    assert {name: stored[name] for name in ("event_id", "item_id", "kind", "session_id", "request_id")} == {
        name: sent[name] for name in ("event_id", "item_id", "kind", "session_id", "request_id")
    }
    assert stored["timestamp"] == "2026-03-14T09:30:00Z"


@pytest.mark.parametrize("kind", FEEDBACK_KINDS)
def test_every_kind_is_taken(a: Service, kind: str) -> None:
    user = someone()
    post(a, event(user, kind=kind, value=VALUES.get(kind)))
    assert [(done["kind"], done["value"]) for done in history(a, user)] == [(kind, VALUES.get(kind))]


def test_more_than_the_whole_track_counts_as_the_whole(a: Service) -> None:
    user = someone()
    post(a, event(user, kind="listen", value=1.4))
    assert history(a, user)[0]["value"] == 1.0


def test_an_id_is_minted_where_there_is_none(a: Service) -> None:
    user = someone()
    without = like(user, "an-item-of-the-tests")
    assert post(a, [without, without])["accepted"] == 2
    assert len({done["event_id"] for done in history(a, user)}) == 2


def test_accepted_and_duplicates_add_up_to_the_batch(a: Service) -> None:
    user = someone()
    first, second = event(user), event(user)
    answer = post(a, [first, second, first])
    assert (answer["accepted"], answer["duplicates"]) == (2, 1)
    assert answer["watermark"].isdigit()


def test_a_retry_is_a_duplicate_in_the_other_process_too(a: Service, b: Service) -> None:
    batch = [event(someone()) for _ in range(3)]
    assert post(a, batch)["accepted"] == 3
    again = post(b, batch)
    assert (again["accepted"], again["duplicates"]) == (0, 3)


def test_the_same_ids_sent_to_both_processes_at_once_are_stored_once(a: Service, b: Service) -> None:
    user = someone()
    batch = [event(user) for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: post((a, b)[n % 2], batch), range(8)))
    assert sum(answer["accepted"] for answer in answers) == 20
    assert sum(answer["duplicates"] for answer in answers) == 7 * 20
    assert len(history(a, user)) == 20


def test_a_batch_with_invalid_events_is_refused_whole_with_the_index_of_each(a: Service, b: Service) -> None:
    user = someone()
    batch = [
        event(user),
        event(user, item_id=7),
        event(user),
        event(user, kind="adore"),
        event(user, timestamp=in_minutes(6)),
    ]
    answer = a.client.post("/events", json=batch)
    assert answer.status_code == 422
    assert [error["loc"] for error in answer.json()["errors"]] == [
        ["body", 1, "item_id"], ["body", 3, "kind"], ["body", 4, "timestamp"],
    ]  # fmt: skip
    assert history(b, user) == []


def test_a_thousand_events_are_taken_and_one_more_is_not(a: Service) -> None:
    user = someone()
    batch = [event(user) for _ in range(1001)]
    assert a.client.post("/events", json=batch).status_code == 422
    assert history(a, user) == []
    assert post(a, batch[:1000])["accepted"] == 1000


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": 7},
        {"item_id": 7},
        {"event_id": 7},
        {"user_id": "a\0b"},
        {"item_id": "a/b"},
        {"item_id": "x" * 129},
        {"session_id": ""},
        {"request_id": "a\nb"},
        {"kind": "unlike"},
        {"value": 1},
        {"kind": "rating", "value": None},
        {"kind": "rating", "value": 5.5},
        {"kind": "listen", "value": -0.1},
        {"timestamp": "2026-03-14T09:30:00"},
        {"timestamp": 1773480600},
        {"timestamp": "2999-01-01T00:00:00Z"},
        {"mood": "sunny"},
    ],
    ids=str,
)
def test_a_bad_field_is_refused_by_name(a: Service, change: dict[str, Any]) -> None:
    answer = a.client.post("/events", json=event(someone(), **change))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["loc"] for error in answer.json()["errors"]] == [["body", list(change)[-1]]]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[[]]", b"\xff\xfe", b'{"user_id": "\\ud800"}', b"[" * 100_000, b"\0"], ids=repr
)
def test_a_body_that_is_no_event_is_refused(a: Service, body: bytes) -> None:
    answer = a.client.post("/events", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][0] == "body"


def test_a_clock_that_is_four_minutes_ahead_is_forgiven(a: Service) -> None:
    assert post(a, event(someone(), timestamp=in_minutes(4)))["accepted"] == 1


def test_unknown_users_and_items_are_created_as_bare_rows(a: Service, b: Service) -> None:
    user, item = someone(), f"item-{uuid4().hex}"
    post(a, event(user, item_id=item))
    assert b.client.get(f"/users/{user}").json()["attributes"] == {}
    bare = b.client.get(f"/items/{item}").json()
    assert (bare["title"], bare["categories"]) == (None, [])


def test_without_auto_create_unknown_users_and_items_are_named(strict: Service, a: Service) -> None:
    user, item = someone(), f"item-{uuid4().hex}"
    refused = strict.client.post("/events", json=[event(user, item_id=item)])
    assert refused.status_code == 422
    assert {tuple(error["loc"]): error["msg"] for error in refused.json()["errors"]} == {
        ("body", 0, "user_id"): f"there is no user {user!r}",
        ("body", 0, "item_id"): f"there is no item {item!r}",
    }
    assert a.client.get(f"/users/{user}").status_code == 404
    a.client.put(f"/users/{user}", json={})
    a.client.put(f"/items/{item}", json={})
    assert post(strict, [event(user, item_id=item)])["accepted"] == 1


def test_while_postgres_does_not_answer_it_is_503_and_a_retry_stores_once(strict: Service, stores: Stores) -> None:
    user = someone()
    strict.client.put(f"/users/{user}", json={})
    strict.client.put("/items/an-item-of-the-tests", json={})
    sent = event(user)
    engine = open_engine(stores.environment["DATABASE_URL"])
    with engine.begin() as db:
        db.execute(text("lock table event_ids in access exclusive mode"))
        answer: httpx.Response = strict.client.post("/events", json=sent)
    engine.dispose()
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == "application/problem+json"
    assert "same id" in answer.json()["detail"]
    first, second = post(strict, sent), post(strict, sent)
    assert (first["accepted"] + first["duplicates"], second["duplicates"]) == (1, 1)
    assert len(history(strict, user)) == 1


def test_an_event_counts_in_the_next_answer_of_the_other_process(a: Service, b: Service) -> None:
    user = someone()
    for n in range(5):
        item = recommend(b, user)["items"][0]["item_id"]
        post((a, b)[n % 2], event(user, item_id=item))
        assert item not in [shown["item_id"] for shown in recommend((b, a)[n % 2], user, limit=100)["items"]]
    assert recommend(a, user)["route"] == "established"
