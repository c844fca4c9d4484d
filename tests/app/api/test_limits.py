"""How often a key may ask, how many keys may be tried, and who may ask while no key is needed."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.limits import ADDRESSES, GUESS_SECONDS, GUESSES, Guesses, KeyRates
from app.errors import TooMany
from app.main import create_app
from app.settings import Settings
from app.storage.keys import ApiKey, KeyRing, digest_of
from app.training.queue import MOST_QUEUED
from tests.app.api.conftest import URL
from tests.patience import until

READER, WRITER = (ApiKey(name, digest_of(name), frozenset()) for name in ("reader", "writer"))

QUEUES = ("events", "impressions", "pages", "threads")


class TestKeyRates:
    def test_a_second_is_worth_its_rate_and_each_key_has_its_own(self) -> None:
        rates = KeyRates(5)
        for _ in range(5):
            rates.take(READER, now=100)
        with pytest.raises(TooMany) as refused:
            rates.take(READER, now=100)
        assert refused.value.retry_after == 1
        rates.take(WRITER, now=100)
        rates.take(READER, now=100.2)
        with pytest.raises(TooMany):
            rates.take(READER, now=100.2)

    def test_an_idle_key_saves_up_no_more_than_a_second(self) -> None:
        rates = KeyRates(3)
        rates.take(READER, now=0)
        for _ in range(3):
            rates.take(READER, now=1_000)
        with pytest.raises(TooMany):
            rates.take(READER, now=1_000)

    def test_less_than_one_a_second_is_possible(self) -> None:
        rates = KeyRates(0.1)
        rates.take(READER, now=0)
        with pytest.raises(TooMany) as refused:
            rates.take(READER, now=1)
        assert refused.value.retry_after == 9
        rates.take(READER, now=10)

    def test_none_is_none(self) -> None:
        rates = KeyRates(0)
        for _ in range(1_000):
            rates.take(READER, now=0)


class TestGuesses:
    def test_after_too_many_different_ones_the_address_is_told_to_wait(self) -> None:
        guesses = Guesses()
        for n in range(GUESSES):
            guesses.note("here", f"key {n}", now=n)
        with pytest.raises(TooMany) as refused:
            guesses.note("here", "one more", now=GUESSES)
        assert refused.value.retry_after == GUESS_SECONDS - GUESSES
        guesses.note("elsewhere", "one more", now=GUESSES)
        guesses.note("here", "one more", now=GUESS_SECONDS)
        guesses.note("here", "and another", now=GUESS_SECONDS)

    def test_one_wrong_key_again_and_again_is_no_guessing(self) -> None:
        guesses = Guesses()
        for n in range(10 * GUESSES):
            guesses.note("here", "an old key", now=n / 10)

    def test_slow_guesses_are_counted_anew_each_minute(self) -> None:
        guesses = Guesses()
        for n in range(10 * GUESSES):
            guesses.note("here", f"key {n}", now=n * GUESS_SECONDS / (GUESSES - 2))

    def test_what_is_remembered_is_bounded(self) -> None:
        guesses = Guesses()
        for n in range(ADDRESSES + 5):
            guesses.note(f"address {n}", "wrong", now=0)
        assert len(guesses._tried) == ADDRESSES


@pytest.fixture(scope="module")
def keyed(
    new_database: Callable[[], str], redis_server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    settings = Settings(
        DATABASE_URL=new_database(),
        REDIS_URL=redis_server_url,
        data_dir=tmp_path_factory.mktemp("data"),
        read_key="may-read",
        write_key="may-write",
        admin_key="may-all",
        rate_limit=0.01,
    )
    with TestClient(create_app(settings), base_url=URL, raise_server_exceptions=False) as opened:
        yield opened


class TestOverHttp:
    def test_a_key_that_asks_too_often_is_429_and_told_when_to_come_back(self, keyed: TestClient) -> None:
        asked = [keyed.get("/users", headers={"X-API-Key": "may-read"}) for _ in range(2)]
        assert [each.status_code for each in asked] == [200, 429]
        refused = asked[1]
        assert refused.headers["content-type"] == "application/problem+json"
        assert 0 < int(refused.headers["retry-after"]) <= 100
        assert refused.headers["ratelimit"] == f'"key";r=0;t={refused.headers["retry-after"]}'
        assert refused.headers["ratelimit-policy"].startswith('"key";q=1;w=')
        assert "SEGUE_RATE_LIMIT" in refused.json()["detail"]
        assert keyed.post("/events", headers={"X-API-Key": "may-write"}, json=[]).status_code == 202

    def test_guessing_keys_ends_in_429(self, keyed: TestClient) -> None:
        tried = [keyed.get("/users", headers={"X-API-Key": f"guess {n}"}).status_code for n in range(GUESSES + 1)]
        assert tried == [401] * GUESSES + [429]
        right = [keyed.get("/users", headers={"X-API-Key": "may-all"}).status_code for _ in range(2)]
        assert right == [200, 429], "a right one opens, as often as it may"
        assert keyed.get("/healthz").status_code == 200
        metrics = keyed.get("/metrics").text
        assert 'segue_refused_total{reason="guesses"}' in metrics
        assert 'segue_refused_total{reason="rate"}' in metrics


class TestWithoutAKey:
    """Everybody on this machine may do everything, and no other site's page may."""

    @pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1", "127.8.8.8:80", "[::1]:8000"])
    def test_this_machine_may_ask(self, lasting_client: TestClient, host: str) -> None:
        assert lasting_client.get("/users", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "127.0.0.1.nip.io", "[::"]
    )
    def test_a_name_that_was_made_to_lead_here_may_not(self, lasting_client: TestClient, host: str) -> None:
        refused = lasting_client.get("/users", headers={"Host": host})
        assert refused.status_code == 403
        assert "Host" in refused.json()["detail"]

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://localhost:3000", "http://localhost.evil"]
    )
    @pytest.mark.parametrize("path", ["/admin/train", "/events", "/admin/releases/x/activate"])
    def test_a_page_of_another_site_may_not_post(self, lasting_client: TestClient, origin: str, path: str) -> None:
        """Without a body there is no content type, so a browser would not ask beforehand."""
        refused = lasting_client.post(path, headers={"Origin": origin})
        assert refused.status_code == 403

    def test_a_page_of_this_service_may(self, lasting_client: TestClient) -> None:
        event = {"user_id": "ann", "item_id": "dune", "kind": "view"}
        assert lasting_client.post("/events", json=event, headers={"Origin": URL}).status_code == 202

    def test_a_page_that_was_named_may(self, postgres_url: str, redis_url: str, tmp_path: Path) -> None:
        origins = ("https://shop.example",)
        settings = Settings(DATABASE_URL=postgres_url, REDIS_URL=redis_url, data_dir=tmp_path, cors_origins=origins)
        with TestClient(create_app(settings), base_url=URL) as client:
            assert client.post("/events", json=[], headers={"Origin": origins[0]}).status_code == 202

    def test_who_runs_the_service_may_ask_by_any_name(self, lasting_client: TestClient) -> None:
        assert lasting_client.get("/healthz", headers={"Host": "10.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize("presented", ["first", "last", "wrong", ""])
def test_every_key_is_compared_whatever_matches(monkeypatch: pytest.MonkeyPatch, presented: str) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", count)
    names = ("first", "second", "last")
    ring = KeyRing(tuple(ApiKey(name, digest_of(name), frozenset()) for name in names), is_open=False)
    found = ring.find(presented)
    assert (found.name if found else None) == (presented if presented in names else None)
    # Digests: of one length, whatever the length of what was presented.
    assert compared == [(32, 32)] * len(names)


DEEP = 100_000


class TestDeepJson:
    @pytest.mark.parametrize(
        "body",
        [
            "[" * DEEP,
            "[" * DEEP + "]" * DEEP,
            '{"a":' * DEEP + "1" + "}" * DEEP,
            '{"user_id": "ann", "item_id": "x", "kind": "view", "value": ' + "[" * DEEP + "]" * DEEP + "}",
        ],
    )
    def test_events_nested_without_end_are_422(self, lasting_client: TestClient, body: str) -> None:
        assert self.posted(lasting_client, "POST", "/events", body).status_code == 422

    @pytest.mark.parametrize(("method", "path"), [("POST", "/admin/train"), ("PUT", "/admin/blocks/x")])
    def test_so_are_orders_of_an_administrator(self, lasting_client: TestClient, method: str, path: str) -> None:
        assert self.posted(lasting_client, method, path, "[" * DEEP).status_code in {400, 422}
        assert self.posted(lasting_client, method, path, '{"reason": ' * DEEP).status_code in {400, 422}

    @pytest.mark.parametrize("nesting", ["[", '{"a":'])
    def test_so_are_attributes(self, lasting_client: TestClient, nesting: str) -> None:
        closing = "]" if nesting == "[" else "}"
        body = '{"attributes": {"deep": ' + nesting * DEEP + "1" + closing * DEEP + "}}"
        assert self.posted(lasting_client, "PUT", "/users/ann", body).status_code == 422

    @pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5_000, "0." + "1" * 5_000, "NaN", "Infinity"])
    def test_numbers_beyond_all_bounds_are_no_bugs(self, lasting_client: TestClient, number: str) -> None:
        event = f'{{"user_id": "ann", "item_id": "x", "kind": "rating", "value": {number}}}'
        assert self.posted(lasting_client, "POST", "/events", event).status_code in {202, 422}
        attributes = f'{{"attributes": {{"n": {number}}}}}'
        assert self.posted(lasting_client, "PUT", "/users/ann", attributes).status_code in {200, 201, 422}

    def posted(self, client: TestClient, method: str, path: str, body: str) -> httpx.Response:
        answered: httpx.Response = client.request(
            method, path, content=body, headers={"Content-Type": "application/json"}
        )
        return answered


def test_more_trainings_than_can_be_meant_are_409(client: TestClient) -> None:
    ordered = [client.post("/admin/train") for _ in range(MOST_QUEUED + 1)]
    assert [each.status_code for each in ordered] == [202] * MOST_QUEUED + [409]


def test_what_waits_is_measured(client: TestClient) -> None:
    until(lambda: all(f'queue="{name}"' in client.get("/metrics").text for name in QUEUES))
