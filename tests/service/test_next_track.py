"""API.md, POST /recommend/next: one test per promise, over HTTP, against two processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import pytest
import redis
from sqlalchemy import text

from app.storage.database import open_engine
from tests.patience import until
from tests.service.conftest import Service, Stores, running
from tests.service.test_recommend import ids, recommend, someone


def session() -> str:
    return f"session-{uuid4().hex}"


def ask(service: Service, user: str, session_id: str, **more: object) -> httpx.Response:
    return service.client.post("/recommend/next", json={"user_id": user, "session_id": session_id, **more})


def page(service: Service, user: str, session_id: str, **more: object) -> dict:
    answer = ask(service, user, session_id, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def play(services: tuple[Service, ...], user: str, session_id: str, tracks: int, *, listened: float = 0.9) -> list[str]:
    """A session from its first track on, each call through the next service."""
    given = ids(page(services[0], user, session_id))
    for turn in range(1, tracks):
        service = services[turn % len(services)]
        given += ids(page(service, user, session_id, item_id=given[-1], listened=listened))
    return given


def listens(environment: dict[str, str], session_id: str) -> list[tuple[str, float]]:
    engine = open_engine(environment["DATABASE_URL"])
    with engine.connect() as db:
        statement = (
            "SELECT item_id, value FROM interactions JOIN items ON items.row = item_row "
            "WHERE session_id = :session ORDER BY seq"
        )
        found = [(row.item_id, row.value) for row in db.execute(text(statement), {"session": session_id})]
    engine.dispose()
    return found


def test_an_answer_has_the_shape_of_the_contract(a: Service) -> None:
    user, one = someone(), session()
    first = page(a, user, one)
    assert {"request_id", "user_id", "route", "recommender", "release", "experiments", "items", "next_cursor"} < set(
        first
    )
    assert (first["user_id"], first["session_id"]) == (user, one)
    assert (first["recorded"], first["new_session"], first["route"]) == (None, True, "listening")
    assert set(first["items"][0]) == {"item_id", "position", "score", "source", "promoted", "reason"}
    second = page(a, user, one, item_id=ids(first)[0], listened=0.8)
    assert (second["recorded"], second["new_session"], second["items"][0]["position"]) == (True, False, 2)


def test_a_listen_through_one_process_is_in_the_next_query_of_the_other(a: Service, b: Service) -> None:
    user, one = someone(), session()
    # What other tests made up has no neighbours that it could be the reason of.
    films = [film for film in ids(recommend(a, someone(), limit=100)) if film.isdigit()]
    for here, there, heard in ((a, b, films[11]), (b, a, films[23])):
        page(here, user, one, item_id=heard, listened=1)
        answer = page(there, user, one, limit=5)
        assert heard not in ids(answer)
        reasons = [item["reason"] for item in answer["items"] if item["reason"]["code"] == "next_in_session"]
        assert {reason["item_id"] for reason in reasons} == {heard}


def test_a_listen_is_durable_before_the_answer(a: Service, stores: Stores) -> None:
    user, one = someone(), session()
    heard = ids(page(a, user, one))[0]
    page(a, user, one, item_id=heard, listened=3.5)
    assert listens(stores.environment, one) == [(heard, 1.0)], "above 1 counts as 1"
    done = a.client.get(f"/users/{user}/interactions").json()["items"]
    assert [(event["kind"], event["item_id"], event["session_id"]) for event in done] == [("listen", heard, one)]


def test_no_track_comes_twice_in_sessions_of_a_hundred(a: Service, b: Service) -> None:
    def distinct(nth: int) -> int:
        given = play((a, b), f"listener-{nth}-{uuid4().hex}", session(), 100, listened=(0.9, 0.5, 0.1)[nth % 3])
        return len(set(given))

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(distinct, range(3))) == [100] * 3


def test_fifty_calls_at_once_get_fifty_tracks(a: Service, b: Service) -> None:
    user, one = someone(), session()
    first = ids(page(a, user, one))[0]
    with ThreadPoolExecutor(50) as threads:
        calls = [
            threads.submit(page, service, user, one, item_id=first, listened=0.9)
            for service in (a, b)
            for _ in range(25)
        ]
        given = [track for call in calls for track in ids(call.result())]
    assert len({first, *given}) == 51
    positions = sorted(item["position"] for call in calls for item in call.result()["items"])
    assert positions == list(range(2, 52))


def test_the_same_event_id_gets_the_same_track_and_is_stored_once(a: Service, b: Service, stores: Stores) -> None:
    user, one = someone(), session()
    heard = ids(page(a, user, one))[0]
    call = {"item_id": heard, "listened": 0.8, "event_id": f"event-{uuid4().hex}"}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda service: page(service, user, one, **call), (a, b) * 4))
    assert len({(answer["request_id"], *ids(answer)) for answer in answers}) == 1
    assert answers[0]["items"] == answers[1]["items"]
    assert listens(stores.environment, one) == [(heard, pytest.approx(0.8))]
    fresh = page(b, user, one, item_id=ids(answers[0])[0], listened=0.8, event_id=f"event-{uuid4().hex}")
    assert fresh["items"][0]["position"] == 3


def test_a_session_of_another_user_is_not_found(a: Service, b: Service) -> None:
    one = session()
    page(a, someone(), one)
    for service in (a, b):
        answer = ask(service, someone(), one, item_id="anything", listened=1)
        assert answer.status_code == 404
        assert one in answer.json()["detail"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"item_id": "t1", "listened": -0.1}, "body.listened"),
        ({"item_id": "t1", "listened": "half"}, "body.listened"),
        ({"item_id": "t1"}, "item_id needs listened"),
        ({"listened": 0.5}, "listened needs item_id"),
        ({"limit": 0}, "body.limit"),
        ({"repeat": "sometimes"}, "body.repeat"),
        ({"session_id": ""}, "body.session_id"),
        ({"item_id": "t1", "listened": 1, "timestamp": "2126-01-01T00:00:00Z"}, "body.timestamp"),
        ({"at": "2026-01-01T00:00:00Z"}, "body.at"),
    ],
)
def test_what_makes_no_sense_is_refused(a: Service, wrong: dict, field: str) -> None:
    answer = a.client.post("/recommend/next", json={"user_id": someone(), "session_id": session(), **wrong})
    assert answer.status_code == 422
    assert field in answer.json()["detail"]


def test_a_track_that_nobody_knew_is_recorded_and_not_given(a: Service, b: Service, stores: Stores) -> None:
    user, one, unknown = someone(), session(), f"track-{uuid4().hex}"
    answer = page(a, user, one, item_id=unknown, listened=0.4)
    assert answer["recorded"] is True
    assert listens(stores.environment, one) == [(unknown, pytest.approx(0.4))]
    rest = [ids(page(service, user, one, limit=100)) for service in (b, a)]
    assert unknown not in {track for tracks in rest for track in tracks}


def test_a_session_that_was_ended_begins_anew(a: Service, b: Service) -> None:
    user, one = someone(), session()
    given = play((a,), user, one, 3)
    assert a.client.delete(f"/recommend/next/{one}").json() == {"session_id": one, "ended": True}
    assert b.client.delete(f"/recommend/next/{one}").status_code == 404
    again = page(b, user, one, limit=100)
    assert (again["new_session"], again["items"][0]["position"]) == (True, 1)
    assert set(given) & set(ids(again)), "nothing is left of the session before"
    assert page(a, user, one, item_id=given[1], listened=1)["new_session"] is False
    assert a.client.delete(f"/recommend/next/{session()}").status_code == 404


def test_the_last_tracks_of_a_catalogue_are_all_given_before_one_comes_again(a: Service, b: Service) -> None:
    user, one = someone(), session()
    given: list[str] = []
    while len(set(given)) == len(given):
        assert len(given) <= 2_000
        more = ids(page((a, b)[len(given) // 100 % 2], user, one, limit=100))
        assert len(more) == 100
        given += more
    films = {item for item in given if item.isdigit()}
    assert len(films) >= 400, "the whole sample came before anything came twice"


def test_repeats_come_where_they_are_allowed(a: Service) -> None:
    user, one = someone(), session()
    first = page(a, user, one, limit=20)
    again = page(a, user, one, limit=20, repeat="allow")
    assert len(set(ids(again)) & set(ids(first))) > 10, "all but what people did meanwhile"
    assert not set(ids(page(a, user, one, limit=20))) & set(ids(first))


def test_blocks_and_promotions_apply(a: Service, b: Service) -> None:
    user, one = someone(), session()
    expected = ids(page(a, someone(), session(), limit=10))
    blocked, pinned = expected[0], ids(recommend(a, someone(), limit=100))[77]
    a.client.put(f"/admin/blocks/{blocked}", json={"scope": {"user_id": user}}).raise_for_status()
    a.client.put(f"/admin/promotions/{pinned}", json={"position": 2}).raise_for_status()
    try:
        first, second = page(b, user, one), page(b, user, one)
        assert blocked not in ids(page(b, user, one, limit=50))
    finally:
        for rule in (f"promotions/{pinned}", f"blocks/{blocked}"):
            a.client.delete(f"/admin/{rule}").raise_for_status()
    assert ids(first) != [pinned]
    assert (second["items"][0]["item_id"], second["items"][0]["source"]) == (pinned, "promotion")
    assert second["items"][0]["promoted"]


def test_what_was_given_is_logged_as_an_impression(a: Service, stores: Stores) -> None:
    user = someone()
    answer = page(a, user, session(), limit=3)

    def stored() -> list[dict]:
        return a.client.get(f"/users/{user}/export").json().get("impressions", [])

    until(lambda: len(stored()) == 1)
    [shown] = stored()
    assert (shown["request_id"], shown["surface"], shown["route"]) == (answer["request_id"], "player", "listening")
    assert (shown["item_ids"], shown["propensities"]) == (ids(answer), None)


def test_an_export_gives_back_the_sessions_that_are_remembered(a: Service, b: Service) -> None:
    user, one, other = f"{{odd}}-{uuid4().hex}", session(), session()
    given = play((a, b), user, one, 3, listened=0.75)
    chosen = ids(recommend(a, someone(), limit=90))[-1]
    given += ids(page(b, user, one, item_id=chosen, listened=0.25, timestamp="2026-03-14T09:30:00Z"))
    only_given = ids(page(a, user, other, limit=2))
    kept = {each["session_id"]: each for each in b.client.get(f"/users/{user}/export").json()["sessions"]}
    assert set(kept) == {one, other}
    assert kept[one]["given"] == given
    heard = [(listen["item_id"], listen["listened"]) for listen in kept[one]["listens"]]
    assert heard == [(given[0], 0.75), (given[1], 0.75), (chosen, 0.25)]
    assert kept[one]["listens"][-1]["timestamp"] == "2026-03-14T09:30:00Z"
    assert datetime.fromisoformat(kept[one]["expires_at"]) > datetime.now(UTC)
    assert (kept[other]["given"], kept[other]["listens"]) == (only_given, [])
    assert a.client.get(f"/users/{someone()}/export").status_code == 404


def test_an_erased_user_leaves_no_session_behind(a: Service, stores: Stores) -> None:
    user, one = f"{{odd}}-{uuid4().hex}", session()
    play((a,), user, one, 3)
    cache = redis.Redis.from_url(stores.environment["REDIS_URL"])
    assert any(user.encode() in key for key in cache.scan_iter("segue:session:*"))
    a.client.delete(f"/users/{user}").raise_for_status()
    assert not any(user.encode() in key for key in cache.scan_iter("*"))
    assert a.client.get(f"/users/{user}/export").status_code == 404
    begun = page(a, user, one)
    assert (begun["new_session"], begun["items"][0]["position"]) == (True, 1)


@pytest.fixture(scope="module")
def drawing(stores: Stores) -> Iterator[Service]:
    more = {"SEGUE_NEXT_SAMPLING": "softmax", "SEGUE_NEXT_TEMPERATURE": "0.5", "SEGUE_SESSION_TIMEOUT_SECONDS": "2"}
    with running(stores.environment, **more) as service:
        yield service


def test_drawn_tracks_carry_their_propensities(drawing: Service) -> None:
    user, seed = someone(), ids(recommend(drawing, someone(), limit=5))[3]
    firsts = Counter(ids(page(drawing, user, session(), item_id=seed, listened=1))[0] for _ in range(12))
    assert len(firsts) > 1, "the same question is answered differently"

    def stored() -> list[dict]:
        return drawing.client.get(f"/users/{user}/export").json()["impressions"]

    until(lambda: len(stored()) == 12)
    for shown in stored():
        drawn = shown["exploration"]["draw"]
        place = drawn["candidates"].index(shown["item_ids"][0])
        weights = [2.718281828459045**logit for logit in drawn["logits"]]
        assert shown["propensities"][0] == pytest.approx(weights[place] / sum(weights), rel=1e-4)


def test_a_session_is_over_after_its_time_out(drawing: Service) -> None:
    user, one = someone(), session()
    given = play((drawing,), user, one, 3)
    # Nothing is asked meanwhile: each call would keep the session.
    cache = redis.Redis.from_url(drawing.environment["REDIS_URL"])
    until(lambda: not any(user.encode() in key for key in cache.scan_iter("segue:session:*")))
    late = page(drawing, user, one, item_id=given[-1], listened=1)
    assert (late["new_session"], late["recorded"], late["items"][0]["position"]) == (True, True, 1)
