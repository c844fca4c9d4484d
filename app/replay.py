"""A log played against a running service over HTTP: ask what the user should meet next, tell what they met, go on.

Knows nothing of the service but its contract (API.md): `at` is the moment of each event and `min_watermark` the last
answer's, so that what is found doesn't depend on how fast the machine is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import Unavailable
from models.evaluation.replay import Feed, Ranks

VALUED = frozenset({"rating", "listen"})
"""The kinds of event that have a value (API.md)."""

ATTEMPTS = 10
"""For one request; the service itself waits two seconds for a watermark before it answers 503."""
TIMEOUT_SECONDS = 30
EVENTS_PER_REPORT = 200


@dataclass(frozen=True, slots=True)
class ReplayedEvent:
    """One event of the log; `is_case` where the user meets the item for the first time. timestamp: unix seconds."""

    event_id: str
    user_id: str
    item_id: str
    kind: str
    value: float | None
    timestamp: float
    session_id: str | None
    is_case: bool


@dataclass(frozen=True, slots=True)
class Service:
    """Where it listens on this machine, and keys that open it: `at` needs one of scope admin."""

    port: int
    admin_key: str
    write_key: str


@dataclass(slots=True)
class Played:
    """What the service answered, one entry per case in the order of the log.

    ranks:       from 1, 0 where the item was not in the list
    ask_seconds, feed_seconds: of each GET, which repeated ones include, and of each POST
    seconds:     from the first request to the last
    unavailable: answers with 503, after which the request was made again
    reconnected: connections that broke, likewise
    """

    ranks: list[int] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    recommenders: list[str] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)
    feed_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0
    unavailable: int = 0
    reconnected: int = 0

    def ranks_array(self) -> Ranks:
        return np.array(self.ranks, np.int32)

    def speed(self, events: int) -> dict[str, float]:
        """Events per second with everything that was asked and fed on the way, and latencies in milliseconds."""
        return {
            "events/s": events / self.seconds if self.seconds else 0.0,
            "GET p50 ms": _quantile_ms(self.ask_seconds, 0.5),
            "GET p99 ms": _quantile_ms(self.ask_seconds, 0.99),
            "POST p50 ms": _quantile_ms(self.feed_seconds, 0.5),
            "POST p99 ms": _quantile_ms(self.feed_seconds, 0.99),
            "answers 503": float(self.unavailable),
            "reconnects": float(self.reconnected),
        }


class Unexpected(Unavailable):
    """The service answered what a replay can't go on with."""


def play(
    service: Service,
    events: Sequence[ReplayedEvent],
    *,
    k: int,
    feed: Feed,
    watch: Callable[[int, int], None],
) -> Played:
    """Asks for k items before each case and feeds each event, in their order, the feeding as far behind as `feed` says.

    Events that are still unknown when the last case was asked about are not fed.
    watch: gets how many events are behind, and how many there are
    Raises Unexpected for an answer other than a success, or 503 for too often.
    """
    played = Played()
    asking, feeding = _Caller(service.port, service.admin_key), _Caller(service.port, service.write_key)
    asks = [_path(event, k) if event.is_case else "" for event in events]
    bodies = [_body(event) for event in events]
    fed, watermark = 0, ""
    started = time.perf_counter()
    try:
        for number, event in enumerate(events):
            if (known := feed.known(number)) > fed:
                watermark = _feed(feeding, bodies[fed:known], played)
                fed = known
            if event.is_case:
                _ask(asking, asks[number] + watermark, event.item_id, played)
            if number % EVENTS_PER_REPORT == 0:
                watch(number, len(events))
        played.seconds = time.perf_counter() - started
    finally:
        asking.close()
        feeding.close()
    watch(len(events), len(events))
    return played


def rfc3339(timestamp: float) -> str:
    """Unix seconds as the contract writes times, to the microsecond."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _path(event: ReplayedEvent, k: int) -> str:
    return f"/recommend?user_id={quote(event.user_id, safe='')}&limit={k}&at={rfc3339(event.timestamp)}"


def _body(event: ReplayedEvent) -> bytes:
    return orjson.dumps(
        {
            "event_id": event.event_id,
            "user_id": event.user_id,
            "item_id": event.item_id,
            "kind": event.kind,
            "value": event.value if event.kind in VALUED else None,
            "timestamp": rfc3339(event.timestamp),
            "session_id": event.session_id,
        }
    )


def _ask(caller: _Caller, path: str, wanted: str, played: Played) -> None:
    started = time.perf_counter()
    answer = caller.call("GET", path, None, 200, played)
    played.ask_seconds.append(time.perf_counter() - started)
    page = orjson.loads(answer)
    shown = [item["item_id"] for item in page["items"]]
    played.ranks.append(shown.index(wanted) + 1 if wanted in shown else 0)
    played.routes.append(page["route"])
    played.recommenders.append(page["recommender"])


def _feed(caller: _Caller, bodies: Sequence[bytes], played: Played) -> str:
    """Posts the events; what later questions must have counted, as a part of their path."""
    started = time.perf_counter()
    answer = caller.call("POST", "/events", b"[" + b",".join(bodies) + b"]", 202, played)
    played.feed_seconds.append(time.perf_counter() - started)
    return f"&min_watermark={quote(orjson.loads(answer)['watermark'], safe='')}"


class _Caller:
    """One connection that stays open: opening one per request would take longer than the answer."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        self._headers = {"X-API-Key": key, "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: bytes | None, expected: int, played: Played) -> bytes:
        """The body of the answer. Every request of a replay may be repeated: events carry their ids."""
        said = "no answer"
        for attempt in range(ATTEMPTS):
            try:
                self._connection.request(method, path, body, self._headers)
                response = self._connection.getresponse()
                answer = response.read()
            except (HTTPException, OSError) as error:
                self._connection.close()
                played.reconnected += 1
                said = str(error) or type(error).__name__
                time.sleep(0.05 * attempt)
                continue
            if response.status == expected:
                return answer
            said = f"{response.status} {answer[:500].decode('utf-8', 'replace')}"
            if response.status != 503:
                break
            played.unavailable += 1
            time.sleep(0.05)
        raise Unexpected(f"{method} {path}: {said}")

    def close(self) -> None:
        self._connection.close()


def _quantile_ms(seconds: Sequence[float], share: float) -> float:
    values: NDArray[np.float64] = np.array(seconds)
    return float(np.quantile(values, share) * 1000) if len(values) else 0.0
