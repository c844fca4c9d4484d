"""Redis or Postgres is killed, or hangs; both are; they are when the service starts. It answers, says what
is missing, and heals by itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import get_args
from uuid import uuid4

import httpx
import psycopg2
import pytest
import redis

from tests.patience import until
from tests.service.conftest import KEYS, Service, Stores, await_ready, client_of, free_port, running
from tests.service.outages import How, Island, Server, island, metric, up
from tests.service.test_recommend import ids, like, recommend, send, someone

HOWS = get_args(How)


@pytest.fixture(scope="module")
def place(stores: Stores) -> Iterator[Island]:
    with tempfile.TemporaryDirectory(prefix="segue-island-") as folder:
        Path(folder).chmod(0o755)
        with island(stores, Path(folder)) as made:
            yield made


@pytest.fixture
def whole(place: Island) -> Iterator[Island]:
    """Nothing is missing, before the test and, without anybody's help, after it."""
    yield place
    for service in (place.a, place.b):
        until(lambda service=service: service.client.get("/readyz").json()["degraded"] == {})
        until(lambda service=service: up(service, "postgres") == up(service, "redis") == 1)


@pytest.fixture
def fan(whole: Island) -> str:
    """A user who liked six items, as Redis and both processes know."""
    user = someone()
    send(whole.a, *(like(user, item) for item in ids(recommend(whole.a, someone(), limit=6))))
    for service in (whole.a, whole.b):
        assert recommend(service, user)["route"] == "established"
    return user


def assert_missing(service: Service, *names: Server) -> None:
    """`/readyz` says so, and the metrics do for who never asks it."""
    missing = {"valkey": "redis"}
    expected = {missing.get(name, name) for name in names}
    until(lambda: set(service.client.get("/readyz").json()["degraded"]) == expected)
    assert all(up(service, name) == 0 for name in expected)


def reads(service: Service, source: str) -> float:
    return metric(service, f'segue_user_view_reads_total{{source="{source}"}}')


def assert_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("how", HOWS)
def test_without_redis_a_past_is_as_exact_as_with_it(whole: Island, fan: str, how: How) -> None:
    first, second, third = ids(recommend(whole.a, fan, limit=3))
    with whole.without("valkey", how):
        for service in (whole.a, whole.b):
            assert recommend(service, fan)["route"] == "established"
            assert recommend(service, someone())["route"] == "new"
        send(whole.a, like(fan, first))
        assert first not in ids(recommend(whole.b, fan, limit=400))
        send(whole.b, like(fan, second))
        assert second not in ids(recommend(whole.a, fan, limit=400))
        assert_missing(whole.a, "valkey")
    for service in (whole.a, whole.b):
        assert not {first, second} & set(ids(recommend(service, fan, limit=400)))
    send(whole.a, like(fan, third))
    assert third not in ids(recommend(whole.b, fan, limit=400))


@pytest.mark.parametrize("how", HOWS)
def test_without_redis_a_block_that_was_acknowledged_holds_in_both_processes(whole: Island, how: How) -> None:
    doomed = ids(recommend(whole.b, someone()))[0]
    with whole.without("valkey", how):
        whole.a.client.put(f"/admin/blocks/{doomed}", json={}).raise_for_status()
        for service in (whole.b, whole.a):
            assert doomed not in ids(recommend(service, someone(), limit=400))
    for service in (whole.b, whole.a):
        assert doomed not in ids(recommend(service, someone(), limit=400))
    whole.a.client.delete(f"/admin/blocks/{doomed}").raise_for_status()
    assert doomed in ids(recommend(whole.b, someone(), limit=400))


def test_without_redis_pages_follow_where_they_are_known_and_everywhere_once_it_is_back(
    whole: Island, fan: str
) -> None:
    def page(service: Service, cursor: str) -> httpx.Response:
        return service.client.get("/recommend", params={"user_id": fan, "limit": 5, "cursor": cursor})

    before = recommend(whole.a, fan, limit=5)
    with whole.without("valkey", "hung"):
        followed = page(whole.a, before["next_cursor"]).json()
        assert not set(ids(followed)) & set(ids(before))
        assert_refused(page(whole.b, before["next_cursor"]))
        meanwhile = recommend(whole.a, fan, limit=5)
        expected = ids(page(whole.a, meanwhile["next_cursor"]).json())
    # The process that has the slate writes it as soon as Redis takes it.
    until(lambda: page(whole.b, meanwhile["next_cursor"]).status_code == 200)
    assert ids(page(whole.b, meanwhile["next_cursor"]).json()) == expected
    assert ids(page(whole.b, before["next_cursor"]).json()) == ids(followed)


def test_a_redis_that_is_full_is_said_and_pasts_stay_exact(whole: Island, fan: str) -> None:
    item = ids(recommend(whole.a, fan))[0]
    with redis.Redis.from_url(whole.environment["REDIS_URL"]) as cache:
        cache.config_set("maxmemory", 1)
        try:
            send(whole.a, like(fan, item))
            for service in (whole.b, whole.a):
                assert item not in ids(recommend(service, fan, limit=400))
            until(lambda: recommend(whole.a, fan)["route"] == "established" and up(whole.a, "redis") == 0)
            assert "memory" in whole.a.client.get("/readyz").json()["degraded"]["redis"]
        finally:
            cache.config_set("maxmemory", 0)
    assert item not in ids(recommend(whole.b, fan, limit=400))


@pytest.mark.parametrize("how", HOWS)
def test_without_postgres_who_is_known_is_served_and_nothing_is_half_stored(whole: Island, fan: str, how: How) -> None:
    stranger, item = someone(), ids(recommend(whole.a, fan))[0]
    send(whole.a, like(stranger, item))  # which takes the view out of Redis
    for service in (whole.a, whole.b):
        recommend(service, fan)  # a slow Redis may have cost all views their name meanwhile
    event = like(fan, item) | {"event_id": f"e-{uuid4().hex}"}
    refused: list[Callable[[], httpx.Response]] = [
        lambda: whole.a.client.post("/events", json=event),
        lambda: whole.a.client.put(f"/admin/blocks/{item}", json={}),
        lambda: whole.a.client.put(f"/users/{fan}/likes/{item}"),
        lambda: whole.a.client.delete(f"/users/{stranger}"),
        lambda: whole.a.client.get(f"/users/{fan}"),
        lambda: whole.a.client.get("/admin/rules"),
    ]
    with whole.without("postgres", how), ThreadPoolExecutor(len(refused)) as threads:
        answers = [threads.submit(ask) for ask in refused]
        for service in (whole.a, whole.b):
            page = recommend(service, fan)
            assert (page["route"], page["recommender"]) == ("established", "blend")
            page = recommend(service, stranger)
            assert (page["route"], page["recommender"], len(page["items"])) == ("degraded", "live_counts", 10)
            assert ids(service.client.get("/recommend/popular").json())
            assert ids(service.client.get(f"/recommend/similar/{item}").json())
        assert_missing(whole.b, "postgres")
        for answer in answers:
            assert_refused(answer.result())
        assert "the same ids" in answers[0].result().json()["detail"]
    until(lambda: whole.a.client.post("/events", json=event).status_code == 202)
    for service in (whole.b, whole.a):
        assert item not in ids(recommend(service, fan, limit=400)), "healed, and at once"
        assert recommend(service, stranger)["route"] == "few"
    assert whole.a.client.post("/events", json=event).json()["duplicates"] == 1


def test_a_block_set_as_soon_as_postgres_is_back_holds_in_the_other_process(whole: Island, fan: str) -> None:
    doomed = ids(recommend(whole.b, fan))[0]
    with whole.without("postgres", "killed"):
        for _ in range(5):
            recommend(whole.b, fan)
    until(lambda: whole.a.client.put(f"/admin/blocks/{doomed}", json={}).status_code == 200)
    assert doomed not in ids(recommend(whole.b, fan, limit=400))
    whole.a.client.delete(f"/admin/blocks/{doomed}").raise_for_status()


@pytest.mark.parametrize("how", HOWS)
def test_without_both_the_last_snapshot_answers(whole: Island, fan: str, how: How) -> None:
    with whole.without("postgres", how), whole.without("valkey", how):
        for service in (whole.a, whole.b):
            for user in (fan, someone()):
                page = recommend(service, user)
                assert (page["route"], len(page["items"])) == ("degraded", 10)
                assert page["release"] == whole.release_id
            assert ids(service.client.get("/recommend/popular").json())
        assert_missing(whole.a, "postgres", "valkey")
    until(lambda: recommend(whole.b, fan)["route"] == "established")


def test_a_process_starts_without_redis_and_uses_it_once_it_is_there(whole: Island, fan: str) -> None:
    with ExitStack() as stack:
        with whole.without("valkey", "killed"):
            service = stack.enter_context(running(whole.environment))
            assert recommend(service, fan)["route"] == "established"
            assert_missing(service, "valkey")
        until(lambda: service.client.get("/readyz").json()["degraded"] == {})
        until(lambda: recommend(service, fan)["route"] == "established" and reads(service, "redis") > 0)


@contextmanager
def starting(whole: Island, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A process that starts, and who asks it; what it says goes to `log`."""
    port = free_port()
    # It shall wait for a Postgres that is away, and not for one that is slow.
    environment = whole.a.environment | {"SEGUE_DATABASE_TIMEOUT_SECONDS": "60"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--no-worker"]
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = stack.enter_context(subprocess.Popen(command, env=environment, stderr=output))
        stack.callback(process.terminate)
        yield process, stack.enter_context(client_of(f"http://127.0.0.1:{port}", KEYS["admin"]))


def test_a_process_that_starts_without_postgres_waits_for_it_and_says_so(whole: Island, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ExitStack() as stack:
        with whole.without("postgres", "killed"):
            process, client = stack.enter_context(starting(whole, log))
            until(lambda: b"waiting for Postgres" in log.read_bytes())
            assert process.poll() is None
        await_ready(client, process)
        until(lambda: client.get("/readyz").json()["degraded"] == {})


@pytest.mark.parametrize("table", ["alembic_version", "database_identity"])
def test_a_process_whose_postgres_is_killed_while_it_starts_waits_for_it(
    whole: Island, tmp_path: Path, table: str
) -> None:
    """table: one that a process reads at that point of its start, and never again"""
    log = tmp_path / "log"
    with ExitStack() as stack:
        holding = stack.enter_context(closing(psycopg2.connect(whole.environment["DATABASE_URL"]))).cursor()
        holding.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        process, client = stack.enter_context(starting(whole, log))
        until(lambda: waiting_for(table, holding))
        with whole.without("postgres", "killed"):
            until(lambda: b"waiting for Postgres" in log.read_bytes())
            assert process.poll() is None
        await_ready(client, process)
        until(lambda: client.get("/readyz").json()["degraded"] == {})


def waiting_for(table: str, cursor: psycopg2.extensions.cursor) -> bool:
    cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE relation = %s::regclass AND NOT granted)", (table,))
    return bool(cursor.fetchone()[0])
