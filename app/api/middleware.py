"""Around every request, as plain ASGI: its id, its limits, its metrics."""

from __future__ import annotations

import asyncio
import re
import time
from urllib.parse import unquote_to_bytes

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import telemetry
from app.api.problems import bug, problem
from app.errors import FieldError, Invalid, TooLarge, Unavailable
from app.serving.request_ids import new_request_id

_counter = telemetry.labelled(telemetry.REQUESTS)
_timer = telemetry.labelled(telemetry.REQUEST_SECONDS)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

GONE = 499
"""The status, in metrics alone, of a request whose client left before it was complete."""


class Surroundings:
    """Gives each answer an X-Request-ID, refuses bodies that are too large and addresses that are no text, counts and
    times."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, has_begun = time.perf_counter(), 500, False
        headers = dict(scope["headers"])
        request_id = _valid_id(headers.get(b"x-request-id"))

        async def send_with_id(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            if _declared_length(headers) > self._max_body_bytes:
                await self._refuse(scope, receive, send_with_id)
            elif (place := _not_utf8(scope)) is not None:
                await _refuse_address(place, scope, receive, send_with_id)
            else:
                await self._app(scope, self._bounded(receive), send_with_id)
        except _BodyTooLarge:
            await self._refuse(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # By uvicorn, when it was told to stop and has waited for long enough, for a Postgres that hangs, say.
            if has_begun:
                raise
            status = 503
            stopping = "the service is stopping, the outcome is unknown: retry with the same ids"
            answer = problem(status, Unavailable.title, stopping, headers={"Retry-After": "1"})
            await answer(scope, receive, send_with_id)
        except ClientDisconnect:
            status = GONE
        except Exception as error:
            if has_begun:
                raise
            # Starlette's own layer for this lies outside of this one: its answer would have no id.
            await bug(Request(scope), error)(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "unmatched")
            _counter(scope["method"], path, status).inc()
            _timer(path).observe(time.perf_counter() - started)

    def _bounded(self, receive: Receive) -> Receive:
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise _BodyTooLarge
            return message

        return receive_bounded

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"body: larger than {self._max_body_bytes} bytes (SEGUE_MAX_BODY_BYTES)"
        await problem(413, TooLarge.title, detail)(scope, receive, send)


class _BodyTooLarge(Exception):
    """A body without a declared length turned out too long."""


def _valid_id(given: bytes | None) -> bytes:
    """The caller's id where it is one that can go into a log, else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else new_request_id().encode()


def _not_utf8(scope: Scope) -> str | None:
    """The part of the address in which bytes are escaped that are no text. They would be read as U+FFFD, all of them,
    so that several ids, to whoever sent them, were one here."""
    path, query = scope.get("raw_path") or b"", scope.get("query_string", b"")
    if b"%" not in path and b"%" not in query:
        return None
    return next((place for place, raw in (("path", path), ("query", query)) if not _is_utf8(raw)), None)


def _is_utf8(escaped: bytes) -> bool:
    try:
        unquote_to_bytes(escaped).decode()
    except UnicodeDecodeError:
        return False
    return True


async def _refuse_address(place: str, scope: Scope, receive: Receive, send: Send) -> None:
    error = FieldError((place,), "escaped bytes must be UTF-8")
    await problem(422, Invalid.title, f"{place}: {error.msg}", errors=[error])(scope, receive, send)


def _declared_length(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0
