"""A transport between uvicorn and a client that sends the head of an answer and its body in one segment.

uvicorn writes them one after the other, and each write is a call of the system that wakes the client.
"""

from __future__ import annotations

import asyncio
from typing import Any

GATHERED_BYTES = 32 * 1024
"""More is sent at once: else who makes a long answer without a pause would not be told that the client is slow."""


class GatheringTransport:
    """What is written waits for `send_gathered`, when the answer is complete, but no longer than this turn of the event
    loop; the order stays. All else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._is_due = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes > GATHERED_BYTES:
            self.send_gathered()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._send_what_is_left)

    def send_gathered(self) -> None:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        # Its client may be gone since.
        if gathered and not self._transport.is_closing():
            self._transport.writelines(gathered)

    def write_eof(self) -> None:
        self.send_gathered()
        self._transport.write_eof()

    def close(self) -> None:
        self.send_gathered()
        self._transport.close()

    def abort(self) -> None:
        self._gathered, self._gathered_bytes = [], 0
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return self._gathered_bytes + self._transport.get_write_buffer_size()

    def _send_what_is_left(self) -> None:
        self._is_due = False
        self.send_gathered()
