"""The client of a replay, against a server that misbehaves on demand, as the real one can't be made to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from app.replay import ATTEMPTS, Played, ReplayedEvent, Service, Unexpected, play, rfc3339
from models.evaluation.replay import Feed, unwatched


class Stand(ThreadingHTTPServer):
    """Answers lists of the items a, b, c, and remembers what it was asked.

    refusals: statuses to answer with before anything else; 0 drops the connection
    """

    def __init__(self, refusals: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Stander)
        self.refusals = refusals
        self.asked: list[tuple[str, Any]] = []


class Stander(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stand

    def do_GET(self) -> None:
        self._said("GET", {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})
        items = [{"item_id": item_id} for item_id in "abc"]
        self._answer(200, {"items": items, "route": "few", "recommender": "blend"})

    def do_POST(self) -> None:
        events = orjson.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._said("POST", events)
        self._answer(202, {"accepted": len(events), "duplicates": 0, "watermark": events[-1]["event_id"]})

    def _said(self, method: str, what: Any) -> None:
        self.server.asked.append((method, {**what, "key": self.headers["X-API-Key"]} if method == "GET" else what))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        status = self.server.refusals.pop(0) if self.server.refusals else status
        if not status:
            self.close_connection = True
            return
        encoded = orjson.dumps(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@contextmanager
def standing(*refusals: int) -> Iterator[Stand]:
    with Stand(list(refusals)) as stand:
        threading.Thread(target=stand.serve_forever, args=(0.01,), daemon=True).start()
        yield stand
        stand.shutdown()


def played(stand: Stand, *events: ReplayedEvent, feed: Feed | None = None, k: int = 3) -> Played:
    service = Service(stand.server_port, admin_key="admin", write_key="write")
    return play(service, events, k=k, feed=feed or Feed.behind(0), watch=unwatched)


def event(number: int, item_id: str = "b", *, is_case: bool = True, kind: str = "rating") -> ReplayedEvent:
    return ReplayedEvent(f"e{number}", "u ü/&", item_id, kind, 4.0, 1_365_000_000.25 + number, "s", is_case)


def test_it_asks_before_each_case_and_feeds_every_event_after() -> None:
    with standing() as stand:
        found = played(stand, event(0, "c"), event(1, "x"), event(2, "a", is_case=False), event(3, "a"))

    assert found.ranks == [3, 0, 1]
    assert found.routes == ["few"] * 3
    assert found.recommenders == ["blend"] * 3
    assert [method for method, _ in stand.asked] == ["GET", "POST", "GET", "POST", "POST", "GET"]
    asked = [what for method, what in stand.asked if method == "GET"]
    assert asked[0] == {"user_id": "u ü/&", "limit": "3", "at": "2013-04-03T14:40:00.250000Z", "key": "admin"}
    assert [what.get("min_watermark") for what in asked] == [None, "e0", "e2"]


def test_events_are_told_as_they_were() -> None:
    with standing() as stand:
        played(stand, event(0), event(1, kind="view"), event(2))

    (first,), (second,) = (what for method, what in stand.asked if method == "POST")
    assert first == {
        "event_id": "e0", "user_id": "u ü/&", "item_id": "b", "kind": "rating", "value": 4.0,
        "timestamp": "2013-04-03T14:40:00.250000Z", "session_id": "s",
    }  # fmt: skip
    assert second["value"] is None


def test_with_a_lag_events_come_later_and_together() -> None:
    with standing() as stand:
        played(stand, *(event(number) for number in range(10)), feed=Feed(lag=3, batch=2))

    sent = [(method, len(what)) for method, what in stand.asked if method == "POST"]
    assert sent == [("POST", 2)] * 3
    before_first_post = [method for method, _ in stand.asked].index("POST")
    assert before_first_post == 5
    assert [what["min_watermark"] for method, what in stand.asked[-2:] if method == "GET"] == ["e5"]


def test_what_is_unavailable_is_asked_again_and_counted() -> None:
    with standing(503, 503) as stand:
        found = played(stand, event(0), event(1))

    assert found.unavailable == 2
    assert found.ranks == [2, 2]
    assert found.speed(events=2)["answers 503"] == 2


def test_a_broken_connection_is_opened_again() -> None:
    with standing(0) as stand:
        found = played(stand, event(0))

    assert found.reconnected == 1
    assert found.ranks == [2]


@pytest.mark.parametrize(
    ("refusals", "said"), [([503] * ATTEMPTS, "503"), ([422], "422"), ([0] * ATTEMPTS, "GET /rec")]
)
def test_it_gives_up_on_what_does_not_pass(refusals: list[int], said: str) -> None:
    with standing(*refusals) as stand, pytest.raises(Unexpected, match=said):
        played(stand, event(0))


def test_times_keep_their_microseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_365_000_000.000001) == "2013-04-03T14:40:00.000001Z"
