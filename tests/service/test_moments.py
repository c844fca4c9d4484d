"""Answers as of a moment, and answers that wait for what was just reported."""

from __future__ import annotations

from tests.service.conftest import Service
from tests.service.test_recommend import ids, like, recommend, send, someone


def test_at_answers_as_of_then_and_needs_admin(a: Service) -> None:
    user = someone()
    item = ids(recommend(a, user))[0]
    send(a, like(user, item))
    assert recommend(a, user, at="2030-01-01T00:00:00Z")["route"] == "few"
    refused = a.as_("read").get("/recommend", params={"user_id": user, "at": "2030-01-01T00:00:00Z"})
    assert refused.status_code == 403


def test_at_may_not_be_before_what_the_live_counters_hold(a: Service) -> None:
    user = someone()
    item = ids(recommend(a, user))[0]
    recommend(a, user, min_watermark=send(a, like(user, item)))
    answer = a.client.get("/recommend", params={"user_id": user, "at": "2024-01-01T00:00:00Z"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", "at"]


def test_a_watermark_can_be_waited_for(a: Service, b: Service) -> None:
    user = someone()
    item = ids(recommend(a, user))[0]
    watermark = a.client.post("/events", json=like(user, item)).json()["watermark"]
    assert recommend(b, user, min_watermark=watermark)["route"] == "few"
    assert b.client.get("/recommend", params={"user_id": user, "min_watermark": "soon"}).status_code == 422
