"""What clients do that mean no good, or know no better, over real sockets: each is answered or cut off in time, and the
service goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import httpx
import orjson
import pytest

from tests.service.conftest import KEYS, Service, running
from tests.service.test_recommend import ids, recommend

CLIENT_SECONDS = 3.0
"""Longer than a busy machine keeps one of our own clients from sending what it has begun."""
CONNECTIONS = 12
MAX_BODY_BYTES = 4096
PATIENCE_SECONDS = 90.0
POST = f"POST /events HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEYS['write']}\r\nContent-Type: application/json\r\n"
LAST = "Host: x\r\nConnection: close\r\n"
"""Headers of a request that is the last on its connection."""


@pytest.fixture(scope="module")
def service(
    new_database: Callable[[], str], lasting_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    environment = {
        "DATABASE_URL": new_database(),
        "REDIS_URL": lasting_redis_url,
        "SEGUE_DATA_DIR": str(tmp_path_factory.mktemp("abuse")),
        "SEGUE_CLIENT_SECONDS": str(CLIENT_SECONDS),
        "SEGUE_CONNECTIONS": str(CONNECTIONS),
        "SEGUE_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
        **{f"SEGUE_{scope.upper()}_KEY": key for scope, key in KEYS.items()},
    }
    with running(environment) as started:
        yield started


@pytest.fixture(autouse=True)
def goes_on(service: Service) -> Iterator[None]:
    """Whatever a test did, afterwards others are served."""
    yield
    deadline = time.monotonic() + PATIENCE_SECONDS
    while get(service, "/users").status_code != 200:
        assert time.monotonic() < deadline, "it does not serve any more"
        time.sleep(0.1)


def get(service: Service, path: str) -> httpx.Response:
    """Over a connection of its own."""
    return httpx.get(f"{service.url}{path}", headers={"X-API-Key": KEYS["read"]}, timeout=PATIENCE_SECONDS)


def connected(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=PATIENCE_SECONDS)


def answer(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection; a reset ends it too."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def sent(service: Service, request: str | bytes) -> bytes:
    with connected(service) as connection:
        with suppress(ConnectionError):  # it has said no before it took everything
            connection.sendall(request.encode("latin-1") if isinstance(request, str) else request)
        return answer(connection)


def problem_of(received: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower(), received
    assert b"x-request-id: " in head.lower(), received
    return int(head.split()[1]), orjson.loads(body)


class TestSlowClients:
    def test_who_connects_and_says_nothing_is_cut_off(self, service: Service) -> None:
        assert sent(service, b"") == b""

    def test_a_head_that_never_ends_is_408(self, service: Service) -> None:
        status, problem = problem_of(sent(service, "GET /users HTTP/1.1\r\nHost: x\r\nX-Slow"))
        assert status == problem["status"] == 408

    def test_a_head_that_comes_byte_by_byte_is_408_all_the_same(self, service: Service) -> None:
        with connected(service) as connection:
            connection.settimeout(CLIENT_SECONDS / 10)
            received, deadline = b"", time.monotonic() + PATIENCE_SECONDS
            for byte in b"GET /users HTTP/1.1\r\nHost: x\r\n" + b"X-Slow: " + b"y" * 1000:
                assert time.monotonic() < deadline, "nobody minds"
                try:
                    connection.send(bytes([byte]))
                    received += connection.recv(65536)
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
                break
            assert b" 408 " in received

    def test_a_body_that_never_ends_is_408_and_nothing_is_stored(self, service: Service) -> None:
        status, _ = problem_of(sent(service, f'{POST}Content-Length: 100\r\n\r\n{{"user_id": "slow"'))
        assert status == 408
        assert get(service, "/users/slow").status_code == 404

    def test_a_client_that_reads_no_answer_is_cut_off(self, service: Service) -> None:
        """It may leave its system's buffers full, and one of ours for as long as that takes at the slowest rate."""
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        with connected(service) as connection:
            connection.settimeout(CLIENT_SECONDS)
            deadline = time.monotonic() + PATIENCE_SECONDS
            was_cut_off = False
            while not was_cut_off:
                assert time.monotonic() < deadline, "nobody minds"
                try:
                    connection.sendall(request)
                except TimeoutError:
                    continue
                except ConnectionError:
                    was_cut_off = True


class TestTooMuch:
    def test_more_connections_than_the_limit_are_503_but_for_who_runs_the_service(self, service: Service) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            # Those who say nothing are soon cut off, maybe before the next one asks.
            with ExitStack() as idle:
                for _ in range(CONNECTIONS):
                    idle.enter_context(connected(service))
                answered, health = get(service, "/users"), get(service, "/healthz")
            if answered.status_code == 503:
                break
            assert time.monotonic() < deadline, "there is no limit"
        assert answered.status_code == 503
        assert answered.headers["retry-after"] == "1"
        assert answered.headers["connection"] == "close"
        assert answered.json()["detail"].startswith("too many connections")
        assert health.status_code == 200

    def test_a_head_without_end_is_431(self, service: Service) -> None:
        status, _ = problem_of(sent(service, "GET /users HTTP/1.1\r\nHost: x\r\n" + "X-Long: " + "y" * 400_000))
        assert status == 431

    def test_a_declared_body_too_large_is_413_before_it_is_sent(self, service: Service) -> None:
        with connected(service) as connection:
            connection.sendall(f"{POST}Content-Length: {10**12}\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")

    def test_a_body_in_chunks_is_413_once_it_is_too_large(self, service: Service) -> None:
        chunk = f"{1024:x}\r\n{' ' * 1024}\r\n"
        with connected(service) as connection:
            connection.sendall(f"{POST}Transfer-Encoding: chunked\r\n\r\n{chunk * 5}".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")

    @pytest.mark.parametrize("start", ["0\r\nX-Trailer: ", "0\r\n", "2;extension="])
    @pytest.mark.parametrize("key", [KEYS["write"], "wrong"])
    def test_what_lies_around_chunks_without_end_is_refused(self, service: Service, start: str, key: str) -> None:
        """It is in no body and no head, so nothing else would bound the memory that it takes."""
        head = POST.replace(KEYS["write"], key)
        more = "X-Trailer: y\r\n" * 30_000 if start == "0\r\n" else "y" * 400_000
        received = sent(service, f"{head}Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n{start}{more}")
        if key == "wrong":  # it may have its answer, which may be lost with the connection
            assert received[:12] in {b"", b"HTTP/1.1 401", b"HTTP/1.1 431"}
            assert received.count(b"HTTP/1.1 ") < 2
        else:
            assert problem_of(received)[0] == 431

    def test_who_goes_on_sending_what_was_refused_is_cut_off(self, service: Service) -> None:
        with connected(service) as connection:
            connection.sendall(f"{POST}Content-Length: {10**12}\r\n\r\n".encode())
            deadline = time.monotonic() + PATIENCE_SECONDS
            with suppress(ConnectionError):
                while True:
                    connection.sendall(b" " * 10_000)
                    assert time.monotonic() < deadline, "nobody minds"

    def test_three_thousand_parameters_are_answered(self, service: Service) -> None:
        query = "&".join(["exclude=x"] * 3_000)
        received = sent(
            service,
            f"GET /recommend?user_id=u&{query} HTTP/1.1\r\n{LAST}X-API-Key: {KEYS['read']}\r\n\r\n",
        )
        assert received.split()[1] in {b"200", b"422"}


class TestHeaders:
    @pytest.mark.parametrize(
        "head",
        [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: -1\r\n",
            f"Content-Length: {'9' * 40}\r\n",
            "Content-Length: 5\r\n X-Folded: yes\r\n",
            "Transfer-Encoding: chunked\r\nX-\x00: y\r\n",
            "X-Request-ID: a\rSet-Cookie: b\r\n",
        ],
    )
    def test_a_head_that_two_servers_could_read_differently_is_400(self, service: Service, head: str) -> None:
        status, _ = problem_of(sent(service, f"{POST}{head}\r\n0\r\n\r\n"))
        assert status == 400

    @pytest.mark.parametrize("given", ["a b", "x" * 129, "<script>", "ö", "", "a;b"])
    def test_a_request_id_that_is_none_is_replaced(self, service: Service, given: str) -> None:
        received = sent(
            service, f"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: {given}\r\n\r\n"
        )
        head = received.partition(b"\r\n\r\n")[0].decode("latin-1")
        [answered] = [line for line in head.splitlines() if line.lower().startswith("x-request-id")]
        assert answered.partition(": ")[2] != given
        assert answered.partition(": ")[2].isalnum()

    def test_of_several_keys_the_first_counts(self, service: Service) -> None:
        for first, second, status in ((KEYS["read"], "wrong", b"200"), ("wrong", KEYS["read"], b"401")):
            received = sent(
                service,
                f"GET /users HTTP/1.1\r\n{LAST}X-API-Key: {first}\r\nX-API-Key: {second}\r\n\r\n",
            )
            assert received.split()[1] == status


TRICKS = [
    "{ann}",
    "ann",
    "ann}",
    "{ann",
    "}{",
    "..",
    "%2F",
    "a%00b",
    "caf\u00e9",
    "cafe\u0301",
    "*",
    "ann}:x",
    "\\",
    "'; --",
]


def test_tricky_ids_are_each_a_user_of_its_own(service: Service) -> None:
    """Braces are Redis' hash tags, `*` its patterns; é can be written in two ways, which are two ids."""
    with service.as_("write") as client:
        stored = client.post(
            "/events",
            json=[{"user_id": user, "item_id": f"of {n}", "kind": "like"} for n, user in enumerate(TRICKS)],
        )
        assert stored.json()["accepted"] == len(TRICKS)
    with service.as_("read") as client:
        for n, user in enumerate(TRICKS):
            seen = recommend(replace(service, client=client), user, limit=100, min_watermark=stored.json()["watermark"])
            shown = set(ids(seen))
            assert {f"of {m}" for m in range(len(TRICKS))} - shown == {f"of {n}"}, user


def test_two_ids_that_are_no_text_are_not_one_user(service: Service) -> None:
    with service.as_("admin") as client:
        for address in ("/recommend?user_id=%ff", "/recommend?user_id=u&exclude=%ed%a0%80", "/users/%fe/export"):
            answer = client.get(address)
            assert answer.status_code == 422
            assert answer.json()["errors"] == [
                {"loc": ["query" if "?" in address else "path"], "msg": "escaped bytes must be UTF-8"}
            ]
        assert client.delete("/users/%ff").status_code == 422
        assert client.get("/recommend?user_id=caf%C3%A9").json()["user_id"] == "caf\u00e9"


@pytest.mark.parametrize("path", ["/users/a%2Fb", "/users/a%00b", "/users/%0A", f"/users/{'x' * 129}", "/users/%ff"])
def test_ids_in_a_path_that_are_none_are_refused(service: Service, path: str) -> None:
    received = sent(
        service, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: {KEYS['read']}\r\n\r\n"
    )
    assert received.split()[1] in {b"404", b"422"}
    problem_of(received)
