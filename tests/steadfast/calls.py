"""One HTTP call over a connection of its own, so that each may meet another worker. Failures are noted, not raised."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.steadfast.history import Call


class Target(NamedTuple):
    """A service: a short name for histories, and where it listens."""

    name: str
    url: str


def call(target: Target, method: str, path: str, body: str = "", *, timeout_s: float) -> Call:
    """Waits at most `timeout_s` for each part of the answer."""
    parts = urlsplit(target.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    began = time.monotonic()
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        read, retry_after = _json(answer.read()), answer.headers.get("Retry-After")
    except (OSError, http.client.HTTPException) as error:
        return Call(target.name, began, time.monotonic(), failure=f"{type(error).__name__}: {error}".rstrip(": "))
    finally:
        connection.close()
    return Call(target.name, began, time.monotonic(), answer.status, read, retry_after)


def _json(text: bytes) -> Mapping[str, Any]:
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {"detail": text.decode(errors="replace")[:200]}
