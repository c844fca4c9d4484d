"""uvicorn's protocol with an end to every wait for a client, and to how many clients there may be.

uvicorn waits for ever for a head that comes byte by byte, for a body, and for a client that does not read its answer.
What a client may take is `ConnectionLimits`; each connection is looked at every few seconds, not with every request.
Answers leave through a `GatheringTransport`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app import telemetry
from app.api.gathering_transport import GatheringTransport
from app.api.problems import problem
from app.serving.request_ids import new_request_id

SLOWEST_BYTES_PER_SECOND = 16 * 1024
"""A body or an answer that moves faster than this may take as long as it takes."""
HEAD_BYTES = 32 * 1024
"""The longest request line and headers together; and as much around a body in chunks: extensions, trailers."""
ALWAYS_ANSWERED = frozenset({"/healthz", "/readyz", "/metrics"})
"""Also where there are too many connections: who runs the service must see that."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """connections: open ones per worker. client_seconds: longest wait for a client, see `PatientProtocol`."""

    connections: int
    client_seconds: float


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection.

    A head has `client_seconds` to arrive. A body, and an answer that the client takes in, have those and the time that
    their bytes take at SLOWEST_BYTES_PER_SECOND. Then the connection is closed, with a 408 where nothing was answered
    yet. A longer head is 431. Beyond the limit of connections requests are answered 503.
    """

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._look_seconds = limits.client_seconds / 4
        self._next_look: asyncio.TimerHandle | None = None
        self._head_since: float | None = None
        self._bytes_between = 0
        self._body_since: float | None = None
        self._body_bytes = 0
        self._unread_since: float | None = None
        self._unread_bytes = 0
        self._answering: RequestResponseCycle | None = None
        self._is_leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(GatheringTransport(transport, self.loop))  # type: ignore[arg-type]
        telemetry.QUEUED.labels("connections").set(len(self.connections))
        if len(self.connections) > 2 * self._limits.connections:
            self._refuse("connections")
            transport.abort()
        elif len(self.connections) > self._limits.connections:
            self.app = _TooMany(self.app)
        self._head_since = self.loop.time()
        self._next_look = self.loop.call_later(self._look_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        if self._answering is not None:
            # uvicorn tells so only to the last of the requests that came at once, and the others would write on.
            self._answering.disconnected = True
        super().connection_lost(exc)
        telemetry.QUEUED.labels("connections").set(len(self.connections))

    def data_received(self, data: bytes) -> None:
        if self._is_leaving:
            return
        if self._body_since is None and self._head_since is None:
            self._head_since = self.loop.time()
        self._bytes_between += len(data)
        super().data_received(data)
        is_under_way = self._head_since is not None or self._body_since is not None
        if is_under_way and self._bytes_between > HEAD_BYTES and not self._is_leaving:
            self._refuse("head")
            self._answer(431, f"the request line and headers, or the trailers, are longer than {HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._head_since, self._bytes_between = None, 0
        self._body_since, self._body_bytes = self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._bytes_between = 0
        if not self._has_answered():  # what is sent in spite of an answer buys no time
            self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_since, self._bytes_between = None, 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.transport.send_gathered()  # type: ignore[attr-defined]
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._answer(400, msg)

    def timeout_keep_alive_handler(self) -> None:
        # `close` would wait until the client has read everything.
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _look(self) -> None:
        self._next_look = self.loop.call_later(self._look_seconds, self._look)
        now = self.loop.time()
        unread = self.transport.get_write_buffer_size()
        if not unread:
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since, self._unread_bytes = now, unread
        if self._is_late(now, self._unread_since, self._unread_bytes):
            self._refuse("slow")
            self.transport.abort()
        elif self._is_late(now, self._head_since, 0) or self._is_late(now, self._body_since, self._body_bytes):
            self._give_up()

    def _is_late(self, now: float, since: float | None, moved: int) -> bool:
        return since is not None and now - since > self._limits.client_seconds + moved / SLOWEST_BYTES_PER_SECOND

    def _give_up(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
            return
        self._refuse("slow")
        if self._body_since is None and not self._bytes_between:  # nothing came
            self.transport.abort()
        else:
            self._answer(408, f"the request did not arrive within {self._limits.client_seconds:g} s")

    def _has_answered(self) -> bool:
        """Whether the latest request that came has its answer: before its body did, where that was refused."""
        return self.cycle is not None and self.cycle.response_complete

    def _is_another_due(self) -> bool:
        """Whether what is written now would not be the answer to the request that is coming in: that has one, or it has
        begun, or an earlier request has none yet, whose answer it would seem to be."""
        if self._body_since is not None and self._has_answered():
            return True
        now = self._answering
        if now is None or now.response_complete:
            return False
        return now.response_started or now is not self.cycle or self._body_since is None

    def _refuse(self, reason: str) -> None:
        telemetry.REFUSED.labels(reason).inc()

    def _answer(self, status: int, detail: str) -> None:
        """An answer without the application, the last one on this connection; none where another is due, in the middle
        of which it could lie."""
        if self._is_another_due():
            self.transport.abort()
            return
        title = HTTPStatus(status).phrase
        body = bytes(problem(status, title, detail).body)
        head = (
            f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {new_request_id()}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._leave()

    def _leave(self) -> None:
        """Closes once the client has. For a moment what it still sends is taken in and dropped: closing at once would
        make its system throw the answer away."""
        self._is_leaving = True
        for cycle in (self.cycle, self._answering):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
        self.flow.resume_reading()
        self.transport.write_eof()
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = self.loop.call_later(self._look_seconds, self.transport.abort)


class _TooMany:
    """What answers on connections beyond the limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        telemetry.REFUSED.labels("connections").inc()
        headers = {"Retry-After": "1", "Connection": "close", "X-Request-ID": new_request_id()}
        answer = problem(503, "Unavailable", "too many connections to this worker; retry", headers=headers)
        await answer(scope, receive, send)
