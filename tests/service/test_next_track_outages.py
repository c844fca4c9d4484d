"""Redis or Postgres goes away in mid-session. The player goes on getting tracks, is told what is missing,
and the session goes on when the server is back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import redis

from app.feedback.sessions import digest_of, session_key
from tests.patience import until
from tests.service.conftest import Service, Stores
from tests.service.outages import Island, island, metric
from tests.service.test_next_track import ids, listens, page, play, session
from tests.service.test_recommend import like, someone


@pytest.fixture(scope="module")
def place(stores: Stores) -> Iterator[Island]:
    with tempfile.TemporaryDirectory(prefix="segue-island-") as folder:
        Path(folder).chmod(0o755)
        with island(stores, Path(folder)) as made:
            yield made


def go_on(service: Service, user: str, one: str, given: list[str], calls: int) -> list[dict]:
    """Calls that each report the track before; what is given joins `given`."""
    answers = []
    for _ in range(calls):
        answers.append(page(service, user, one, item_id=given[-1], listened=0.9))
        given += ids(answers[-1])
    return answers


def tracks_in(cache: redis.Redis, key: str) -> list[int]:
    """Those that Redis knows the session to have met."""
    return np.frombuffer(cache.hget(key, "met") or b"", "<i4").tolist()


def is_whole(island: Island) -> None:
    for service in (island.a, island.b):
        # An event that was refused is remembered until one is stored, or for half a minute.
        event = like(someone(), "an-item-of-the-tests")
        until(lambda service=service, event=event: service.client.post("/events", json=event).status_code == 202)
        until(lambda service=service: service.client.get("/readyz").json()["degraded"] == {})


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_without_redis_the_player_goes_on_and_afterwards_the_session_does(place: Island, how: str) -> None:
    user, one = someone(), session()
    given = play((place.a,), user, one, 5)
    with place.without("valkey", how):
        meanwhile = go_on(place.a, user, one, given, 5)
        assert {answer["route"] for answer in meanwhile} == {"degraded"}
        heard = given[:-1]
        stored = {track for track, _ in listens(place.environment, one)}
        # A busy machine may need more than the two seconds that an answer waits; the listen is stored all the same.
        # What an answer says is recorded is stored by then.
        recorded = {track for track, answer in zip(heard[-5:], meanwhile, strict=True) if answer["recorded"]}
        assert recorded
        assert recorded <= stored
        until(lambda: {track for track, _ in listens(place.environment, one)} >= set(heard))
        assert {answer["new_session"] for answer in meanwhile} == {False}
        call = {"item_id": given[-1], "listened": 0.9, "event_id": f"event-{uuid4().hex}"}
        assert ids(page(place.a, user, one, **call)) == ids(page(place.a, user, one, **call))
        given += ids(page(place.a, user, one, **call))
        exported = place.a.client.get(f"/users/{user}/export").json()
        assert exported["sessions"] is None, "what nobody can tell is not said to be nothing"
        assert exported["interactions"]
        # The other process has never heard of the session, but it can read what was listened to.
        assert not set(ids(page(place.b, user, one, item_id=given[-1], listened=0.9, limit=50))) & set(given[:-1])
    until(lambda: go_on(place.a, user, one, given, 1)[0]["route"] == "listening")
    # Redis knows all of it now: whoever is asked gives nothing of it again.
    until(lambda: go_on(place.b, user, one, given, 1)[0]["route"] == "listening")
    after = [*go_on(place.a, user, one, given, 3), *go_on(place.b, user, one, given, 5)]
    assert {(answer["route"], answer["new_session"]) for answer in after} == {("listening", False)}
    assert len(set(given)) == len(given)
    assert after[-1]["items"][0]["position"] >= len(given)
    is_whole(place)


def test_what_a_worker_remembers_of_an_erased_user_is_not_brought_back_to_redis(place: Island) -> None:
    user, one = someone(), session()
    given = play((place.a,), user, one, 5)
    with place.without("valkey", "killed"):
        go_on(place.a, user, one, given, 3)
        assert place.b.client.delete(f"/users/{user}").status_code == 200
        assert page(place.a, user, one)["route"] == "degraded"
    answers: list[dict] = []

    def is_listening() -> bool:
        answers.append(page(place.a, user, one))
        return answers[-1]["route"] == "listening"

    until(is_listening)
    # What was in Redis is on its disk, until the next round of retention.
    assert answers[-1]["items"][0]["position"] <= 5 + len(answers), "what came while it was away is not counted"
    with redis.Redis.from_url(place.environment["REDIS_URL"]) as cache:
        assert len(tracks_in(cache, session_key(user, digest_of(one)))) <= 5 + len(answers)
    is_whole(place)


def test_nobody_is_brought_back_to_redis_while_postgres_cannot_say_who_was_erased(place: Island) -> None:
    user, one = someone(), session()
    given = play((place.a,), user, one, 5)
    key = session_key(user, digest_of(one))
    with place.without("postgres", "hung"):
        with place.without("valkey", "hung"):
            go_on(place.a, user, one, given, 2)
        with redis.Redis.from_url(place.environment["REDIS_URL"]) as cache:
            # As an erasure leaves it.
            cache.delete(key)
            before = len(given)
            until(lambda: go_on(place.a, user, one, given, 1)[0]["route"] == "listening")
            go_on(place.a, user, one, given, 2)
            most = len(given) - before + 1
            assert 3 <= len(tracks_in(cache, key)) <= most, "what is given now and heard of that, nothing of before"

    def is_told() -> bool:
        go_on(place.a, user, one, given, 1)
        with redis.Redis.from_url(place.environment["REDIS_URL"]) as cache:
            return len(tracks_in(cache, key)) == len(given)

    until(is_told)
    until(lambda: go_on(place.b, user, one, given, 1)[0]["route"] == "listening")
    assert len(set(given)) == len(given)
    is_whole(place)


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_without_postgres_tracks_come_and_what_is_not_recorded_can_be_sent_again(place: Island, how: str) -> None:
    user, one = someone(), session()
    given = play((place.a, place.b), user, one, 4)
    call = {"item_id": given[-1], "listened": 0.9, "event_id": f"event-{uuid4().hex}"}
    before = metric(place.a, "segue_listens_unrecorded_total")
    with place.without("postgres", how):
        answer = page(place.a, user, one, **call)
        assert answer["recorded"] is False
        assert not set(ids(answer)) & set(given)
        assert metric(place.a, "segue_listens_unrecorded_total") > before
        given += ids(answer)
        assert page(place.b, user, one, item_id=given[-1], listened=1)["recorded"] is False
    is_whole(place)
    again = page(place.b, user, one, **call)
    assert (ids(again), again["recorded"]) == (ids(answer), True)
    assert [item for item, _ in listens(place.environment, one)].count(given[3]) == 1
