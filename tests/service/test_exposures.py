"""Who is in an experiment is decided before it has a say, holds whatever the user does next, and outlives a crash."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import text

from app.storage.database import open_engine
from tests.patience import until
from tests.service.conftest import Service, Stores, running
from tests.service.test_experiments import act, an_experiment
from tests.service.test_recommend import ids, like, recommend, send, settle, someone

Run = Callable[..., dict[str, Any]]
GOOGLE = {"X-Visitor-User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}


@pytest.fixture
def run(a: Service) -> Iterator[Run]:
    """Starts an experiment through process A, on a surface of its own unless told; stopped at the end."""
    keys = []

    def start(**fields: Any) -> dict[str, Any]:
        body = an_experiment(**fields)
        keys.append(body["key"])
        answer = a.client.post("/admin/experiments", json=body)
        assert answer.status_code == 201, answer.text
        act(a, body["key"], "start")
        return body

    yield start
    for key in keys:
        a.client.post(f"/admin/experiments/{key}/stop")


def variants(service: Service, user: str, defined: dict[str, Any], **more: object) -> dict[str, str]:
    page = recommend(service, user, surface=defined["surface"], **more)
    return {each["key"]: each["variant"] for each in page["experiments"]}


def stored(service: Service, user: str, what: str = "exposures", least: int = 1) -> list[dict[str, Any]]:
    """What is stored of the user, as soon as it is as much as that."""

    def enough() -> list[dict[str, Any]] | None:
        answer = service.client.get(f"/users/{user}/export")
        found = answer.json()[what] if answer.status_code == 200 else []
        return found if len(found) >= least else None

    return until(enough)


def test_an_answer_says_its_variants_and_they_are_stored(a: Service, b: Service, run: Run) -> None:
    user = someone()
    defined = run(forced={user: "popular"})
    here = variants(a, user, defined)
    assert here == variants(b, user, defined) == {defined["key"]: "popular"}
    pages = stored(a, user, "impressions", least=2)
    assert [page["variants"] for page in pages] == [here, here]
    (exposure,) = stored(a, user)
    assert (exposure["variant"], exposure["route"], exposure["marks"]) == ("popular", "new", ["forced"])
    assert exposure["request_id"] in {page["request_id"] for page in pages}


def test_what_somebody_insists_on_is_in_no_experiment(a: Service, run: Run) -> None:
    user = someone()
    defined = run(forced={user: "popular"})
    assert variants(a, user, defined, recommender="live_counts") == {}
    assert variants(a, user, defined, at="2100-01-01T00:00:00Z") == {}
    assert stored(a, user, "impressions")[0]["variants"] == {}
    assert a.client.get(f"/users/{user}/export").json()["exposures"] == []


def test_once_exposed_a_user_stays_in_though_the_route_changes(
    a: Service, b: Service, stores: Stores, run: Run
) -> None:
    items = ids(recommend(a, someone()))
    user, late = someone(), someone()
    defined = run(route="new", forced={user: "popular", late: "popular"})
    send(a, like(late, items[0]))
    assert variants(a, late, defined) == {}, "it was `few` before it was ever exposed"
    assert variants(a, user, defined) == {defined["key"]: "popular"}
    send(b, like(user, items[0]))
    page = recommend(b, user, surface=defined["surface"])
    assert (page["route"], page["recommender"]) == ("few", "popularity")
    assert page["experiments"] == [{"key": defined["key"], "variant": "popular"}]
    with redis.Redis.from_url(stores.environment["REDIS_URL"]) as cache:
        assert [cache.delete(key) for key in cache.keys(f"*{user}*")], "Redis knew the user"
    assert variants(b, user, defined) == variants(a, user, defined) == {defined["key"]: "popular"}
    (exposure,) = stored(a, user)
    assert exposure["route"] == "new"
    assert a.client.get(f"/users/{late}/export").json()["exposures"] == []


def test_a_fallback_stays_in_its_arm_and_is_marked(a: Service, run: Run) -> None:
    user = someone()
    arms = [{"name": "control", "weight": 0.5}, {"name": "als", "weight": 0.5, "recommender": "als_hybrid"}]
    defined = run(variants=arms, forced={user: "als"})
    page = recommend(a, user, surface=defined["surface"])
    assert page["recommender"] != "als_hybrid", "which has nothing to say to somebody who is new"
    assert page["experiments"] == [{"key": defined["key"], "variant": "als"}]
    until(lambda: stored(a, user)[0]["marks"] == ["fallback", "forced"])


def test_crawlers_are_marked(a: Service, run: Run) -> None:
    user, defined = someone(), run()
    asked = {"user_id": user, "surface": defined["surface"]}
    assert a.client.get("/recommend", params=asked, headers=GOOGLE).json()["experiments"]
    assert stored(a, user)[0]["marks"] == ["bot"]


def test_later_pages_stay_in_the_variants_of_their_slate(a: Service, b: Service, run: Run) -> None:
    user = someone()
    defined = run(forced={user: "popular"})
    asked: dict[str, Any] = {"surface": defined["surface"], "limit": 30}
    page = recommend(a, user, **asked)
    act(b, defined["key"], "stop")
    assert recommend(a, user, **asked)["experiments"] == []
    seen: set[str] = set()
    for service in (b, a, b):
        assert seen.isdisjoint(ids(page))
        seen.update(ids(page))
        page = recommend(service, user, cursor=page["next_cursor"], **asked)
        assert page["experiments"] == [{"key": defined["key"], "variant": "popular"}]
        assert {item["source"] for item in page["items"]} == {"popularity"}, "though more had to be ranked"


def test_a_variant_may_leave_promotions_out_and_set_what_the_caller_does_not(a: Service, run: Run) -> None:
    user, other = someone(), someone()
    plain = {"promotions": False, "parameters": {"diversity": 1.0}}
    arms = [{"name": "control", "weight": 0.5}, {"name": "plain", "weight": 0.5, **plain}]
    # Where everybody is, and explained for; but with nobody in it who is not named.
    defined = run(variants=arms, forced={user: "plain", other: "control"}, surface="feed", coverage=0.0)
    item = ids(recommend(a, someone(), limit=200))[-1]
    a.client.put(f"/admin/promotions/{item}", json={"position": 1}).raise_for_status()
    try:
        pages = {each: recommend(a, each, surface=defined["surface"]) for each in (user, other)}
        explained = {
            each: a.client.get("/recommend/explain", params={"user_id": each, "item_id": item}).json()["shown"]
            for each in (user, other)
        }
    finally:
        a.client.delete(f"/admin/promotions/{item}")
    assert ids(pages[other])[0] == item
    assert item not in ids(pages[user])
    assert explained == {user: False, other: True}
    settle(a)
    varied = ids(recommend(a, someone(), diversity=1.0))
    assert ids(recommend(a, user, surface=defined["surface"])) == varied
    assert ids(recommend(a, user, surface=defined["surface"], diversity=0.0)) != varied


def test_an_erased_user_who_comes_back_is_exposed_anew_by_either_process(a: Service, b: Service, run: Run) -> None:
    user, defined = someone(), run()
    for service in (a, b):
        assert variants(service, user, defined)
    stored(a, user)
    assert a.client.delete(f"/users/{user}").json()["erased"]["exposures"] == 1
    assert a.client.get(f"/users/{user}/export").status_code == 404
    request_id = recommend(b, user, surface=defined["surface"])["request_id"]
    assert [exposure["request_id"] for exposure in stored(a, user)] == [request_id]


def test_exposures_of_a_killed_service_are_stored_by_the_others(a: Service, stores: Stores, run: Run) -> None:
    users, defined = [someone() for _ in range(20)], run()
    engine = open_engine(stores.environment["DATABASE_URL"])
    with running(stores.environment) as doomed:
        with engine.begin() as db:
            db.execute(text("lock table exposures"))
            for user in users:
                assert variants(doomed, user, defined)
            doomed.process.send_signal(signal.SIGKILL)
            doomed.process.wait(60)
        for user in users:
            assert len(stored(a, user)) == 1
    engine.dispose()
