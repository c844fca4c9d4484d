"""Keeps an HTTP server busy from this process over a few connections, and reads what that cost the server's process.

The client is an asyncio protocol over httptools: it costs a fraction of what any server costs, so that it is not the
limit. One request is under way on each connection.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlencode, urlsplit

import httptools
import psutil  # type: ignore[import-untyped]
import uvloop

SETTLE_SECONDS = 0.6
"""After the last answer: what a server does behind its answers is part of their cost."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one load came to. cpu_us: CPU time of the server's process per request, of all its threads."""

    requests: int
    cpu_us: float
    waits_ms: list[float]

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.waits_ms)

    @property
    def p99_ms(self) -> float:
        return sorted(self.waits_ms)[int(len(self.waits_ms) * 0.99)]


def get(path: str, *, key: str | None = None, **parameters: str) -> bytes:
    """A GET request as it goes over the wire."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    return f"GET {path}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{_key(key)}\r\n".encode()


def post(path: str, body: bytes, *, key: str | None = None) -> bytes:
    """A POST request of JSON as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{_key(key)}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def load(
    url: str,
    process: psutil.Process,
    requests: Iterable[bytes],
    *,
    seconds: float,
    connections: int,
    beside: Iterable[bytes] = (),
    beside_per_second: float = 0,
) -> Cost:
    """Sends the requests, over and over, for so many seconds.

    beside: requests that trickle in meanwhile, on a connection of their own; they are not counted as requests, but
    what they cost is not subtracted. Raises RuntimeError for any answer but 2xx.
    """
    cpu = _cpu_seconds(process)
    stop = time.perf_counter() + seconds
    again = itertools.cycle(requests)

    async def all_of_it() -> list[float]:
        trickle = asyncio.create_task(_trickle(url, iter(beside), beside_per_second, stop))
        found = await asyncio.gather(*(_one_connection(url, again, stop) for _ in range(connections)))
        await trickle
        await asyncio.sleep(SETTLE_SECONDS)
        return [wait for waits in found for wait in waits]

    waits_ms = uvloop.run(all_of_it())
    return Cost(len(waits_ms), 1e6 * (_cpu_seconds(process) - cpu) / len(waits_ms), waits_ms)


def ask(url: str, requests: Iterable[bytes]) -> list[bytes]:
    """The bodies of the answers, one after the other on one connection."""

    async def all_of_them() -> list[bytes]:
        connection = await connected(url)
        bodies = [await connection.answer(request) for request in requests]
        connection.close()
        return bodies

    return uvloop.run(all_of_them())


class Connection(asyncio.Protocol):
    """One request at a time, and the body of its answer."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answered: asyncio.Future[bytes] | None = None

    async def answer(self, request: bytes) -> bytes:
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), bytes(self._body)
        self._body.clear()
        self._parser = httptools.HttpResponseParser(self)
        if self._answered is None or self._answered.done():
            return
        if 200 <= status < 300:
            self._answered.set_result(body)
        else:
            self._answered.set_exception(RuntimeError(f"answered {status}: {body[:500]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("the server closed the connection"))


async def connected(url: str) -> Connection:
    parts, loop = urlsplit(url), asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, parts.hostname or "", parts.port or 80)
    return connection


async def _one_connection(url: str, requests: Iterator[bytes], stop: float) -> list[float]:
    connection, waits_ms = await connected(url), []
    while (sent := time.perf_counter()) < stop:
        await connection.answer(next(requests))
        waits_ms.append((time.perf_counter() - sent) * 1_000)
    connection.close()
    return waits_ms


async def _trickle(url: str, requests: Iterator[bytes], per_second: float, stop: float) -> None:
    if per_second <= 0:
        return
    connection = await connected(url)
    started = time.perf_counter()
    for n, request in enumerate(requests):
        due = started + n / per_second
        if due > stop:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await connection.answer(request)
    connection.close()


def _key(key: str | None) -> str:
    return f"X-API-Key: {key}\r\n" if key else ""


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
