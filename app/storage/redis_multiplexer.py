"""One connection to Redis that all tasks of an event loop share: questions go out at once, answers come in their order.

redis-py lends each pipeline a connection of its own and reads the answers through a stream, which costs more than all
the rest of a request's way to its user (docs/performance.md). Here it only opens the connection, with whatever address,
password and TLS it was given; then a protocol takes over that does nothing but write commands and count replies.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import hiredis
import redis
import redis.asyncio

Command = tuple[str | bytes | int | float, ...]
FOREVER_SECONDS = 60.0
"""Where the pool sets no limit."""


class Answer(NamedTuple):
    """server: run id of the server that answered (see `redis.open_async`); replies: one for each command."""

    server: str
    replies: list[Any]


def mapping(reply: dict[bytes, bytes] | list[bytes]) -> Mapping[bytes, bytes]:
    """A reply of HGETALL, which protocol 2 sends as a list."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


class RedisMultiplexer:
    """Opens the connection when it is needed, and again where it was lost. For one event loop."""

    def __init__(self, cache: redis.asyncio.Redis) -> None:
        """cache: whose pool opens the connection, and closes it with the others."""
        self._pool = cache.connection_pool
        self._patience = self._pool.connection_kwargs.get("socket_timeout") or FOREVER_SECONDS
        self._connection: redis.asyncio.Connection | None = None
        self._opening: asyncio.Task[_Wire] | None = None
        self._wire: _Wire | None = None

    async def ask(self, *commands: Command) -> Answer:
        """All replies, of one moment on one server. Raises RedisError; a command may have been carried out then.

        Where the connection is lost before the answer came, all of it is asked once more: a connection that the
        server closed while it was idle is not news.
        """
        wire = await self._opened()
        try:
            return await wire.ask(commands)
        except redis.ConnectionError:
            return await (await self._opened()).ask(commands)

    async def _opened(self) -> _Wire:
        """The wire; opened once, however many ask for it."""
        if self._wire is not None and not self._wire.is_closed:
            return self._wire
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open_in_time())
            # Where nobody waits any more its failure is no news.
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._opening)

    async def _open_in_time(self) -> _Wire:
        """redis-py waits for each of the several answers of its greeting, and tries twice."""
        try:
            async with asyncio.timeout(self._patience):
                return await self._open()
        except TimeoutError as error:
            raise redis.TimeoutError(f"Redis did not let us in within {self._patience} s") from error

    async def _open(self) -> _Wire:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
        self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        wire = _Wire(self._connection)
        wire.server = ((await wire.ask([("CLIENT", "GETNAME")])).replies[0] or b"").decode()
        self._wire = wire
        return wire


@dataclass(slots=True)
class _Asked:
    """One question under way. deadline: by the loop's clock."""

    n_replies: int
    deadline: float
    answered: asyncio.Future[Answer]
    replies: list[Any] = field(default_factory=list)


class _Wire(asyncio.Protocol):
    """The connection that redis-py opened, from then on until it is lost."""

    def __init__(self, opened: redis.asyncio.Connection) -> None:
        self.server = ""
        self.is_closed = False
        self._loop = asyncio.get_running_loop()
        self._patience = opened.socket_timeout or FOREVER_SECONDS
        self._asked: deque[_Asked] = deque()
        self._unsent: list[bytes] = []
        self._looking: asyncio.TimerHandle | None = None
        self._replies = hiredis.Reader(replyError=redis.ResponseError, protocolError=redis.InvalidResponse)
        writer = cast(asyncio.StreamWriter, opened._writer)
        self._transport = cast(asyncio.Transport, writer.transport)
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[Answer]:
        # First, for it may raise. Its stub takes tuples of one part only.
        packed = [*map(hiredis.pack_command, commands)]  # type: ignore[arg-type]
        asked = _Asked(len(commands), self._loop.time() + self._patience, self._loop.create_future())
        self._asked.append(asked)
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent += packed
        if self._looking is None:
            self._looking = self._loop.call_at(asked.deadline, self._look)
        return asked.answered

    def _send(self) -> None:
        """What all requests asked in this turn of the loop: as many bytes, but one call of the system for them."""
        unsent, self._unsent = self._unsent, []
        if not self._transport.is_closing():
            self._transport.write(b"".join(unsent))

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        # False is what the reader says where a reply is not complete yet; no reply to what is asked here is False.
        while (reply := self._replies.gets()) is not False:
            if self._asked and not isinstance(reply, hiredis.PushNotification):
                self._take(self._asked[0], reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(redis.ConnectionError(f"the connection to Redis was lost: {exc or 'closed by the server'}"))
        # redis-py waits for this when it closes the connection.
        self._before.connection_lost(exc)

    def _take(self, asked: _Asked, reply: Any) -> None:
        asked.replies.append(reply)
        if len(asked.replies) < asked.n_replies:
            return
        self._asked.popleft()
        if asked.answered.done():
            return
        refused = next((each for each in asked.replies if isinstance(each, Exception)), None)
        if refused is None:
            asked.answered.set_result(Answer(self.server, asked.replies))
        else:
            asked.answered.set_exception(refused)

    def _look(self) -> None:
        """One timer for all questions: the oldest is the first to be late, and then nothing on this wire is good."""
        self._looking = None
        if not self._asked:
            return
        oldest = self._asked[0]
        if self._loop.time() < oldest.deadline:
            self._looking = self._loop.call_at(oldest.deadline, self._look)
        else:
            self._fail(redis.TimeoutError(f"Redis did not answer within {self._patience} s"))
            self._transport.abort()

    def _fail(self, error: redis.RedisError) -> None:
        self.is_closed = True
        asked, self._asked = self._asked, deque()
        for each in asked:
            if not each.answered.done():
                each.answered.set_exception(error)
