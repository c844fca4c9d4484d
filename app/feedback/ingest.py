"""Group commit: concurrent requests hand their events to a thread, which writes whatever has queued up in one
transaction and wakes them once it is durable. There is no timer: what queued during the last commit is the batch.
Where many events queue meanwhile a second thread writes them, so that neither this process nor Postgres waits for the
other (docs/decisions/0023).

A request gets 503 when the queue is full, or when Postgres is away or did not confirm in time; a retry with the
same ids is always safe.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis
from sqlalchemy import Engine

from app.errors import Unavailable
from app.feedback.cache_version import SETTLE_SECONDS
from app.feedback.dirty_marks import ViewWriter
from app.feedback.event_writer import EventWriter, Given, Outcome
from app.feedback.events import Event, Receipt
from app.settings import Settings

__all__ = ["Event", "Ingest", "Receipt"]

GROUP_EVENTS = 5_000
"""A group takes no further request beyond this many events: 0.2 s of work."""
SECOND_FROM = 100
"""So many events must wait for the second writer to take them while the first writes: a transaction costs as much as
some 50 events."""
CONNECT_AGAIN_SECONDS = 1.0
REMEMBERED_SECONDS = 30.0
"""So long a refusal is told of where nobody tries again."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in the queue. loop: where it waits; None for a thread that waits by itself."""

    events: Sequence[Event]
    answer: asyncio.Future[Given] | futures.Future[Given]
    loop: asyncio.AbstractEventLoop | None


class Ingest:
    """The queue and the threads that write it. One per process; `close` before the engine is disposed of."""

    def __init__(
        self,
        engine: Engine,
        cache: Redis,
        settings: Settings,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """cache, settle_seconds: as for ViewWriter. on_commit: called in a writer's thread after each commit."""
        self.views = ViewWriter(cache, ttl_seconds=settings.view_ttl_seconds, settle_seconds=settle_seconds)
        self._on_commit = on_commit
        self._queue_limit = settings.ingest_queue
        self._drain_seconds = settings.drain_seconds
        # A statement ends by itself within database_timeout_seconds; a stopped server doesn't end it.
        self._patience = 2 * settings.database_timeout_seconds
        self._queue: deque[Waiting] = deque()
        self._queued_events = 0
        self._refused: tuple[float, str] | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._wake_first, self._wake_second = threading.Condition(self._lock), threading.Condition(self._lock)
        self._first_is_writing = False
        self.first, self.second = (
            EventWriter(engine, self.views, auto_create=settings.auto_create, tell=self._note) for _ in range(2)
        )
        self._threads = [
            threading.Thread(target=self._run, args=arguments, name="ingest", daemon=True)
            for arguments in ((self.first, self._taken_by_first), (self.second, self._taken_by_second))
        ]
        for thread in self._threads:
            thread.start()

    async def submit(self, events: Sequence[Event], *, settled: bool = True) -> Receipt:
        """Stores the events of one request, all or none; returns once they are durable.

        settled: and once every worker's next answer from a user's past has them
        Raises Unavailable (retry with the same ids) or Invalid (`errors` at (index, field)).
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Given] = loop.create_future()
        self._enqueue(Waiting(events, answer, loop))
        # Once all that this turn of the loop has to send is queued: woken by the first, the thread would begin a group
        # without the others, who then wait for it.
        loop.call_soon(self._wake_up)
        try:
            async with asyncio.timeout(self._patience):
                receipt, settled_at = await answer
        except TimeoutError:
            raise _no_answer() from None
        if settled and (left := settled_at - time.monotonic()) > 0:
            await asyncio.sleep(left)
        return receipt

    def submit_blocking(self, events: Sequence[Event]) -> Receipt:
        """`submit` for a thread without an event loop."""
        answer: futures.Future[Given] = futures.Future()
        self._enqueue(Waiting(events, answer, None))
        self._wake_up()
        try:
            receipt, settled_at = answer.result(self._patience)
        except TimeoutError:
            raise _no_answer() from None
        time.sleep(max(0.0, settled_at - time.monotonic()))
        return receipt

    def close(self) -> None:
        """Takes no more events, writes what is queued (for at most `drain_seconds`), fails the rest."""
        with self._lock:
            self._closing = True
            self._wake_first.notify()
            self._wake_second.notify()
        ends = time.monotonic() + self._drain_seconds
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        with self._lock:
            left = list(self._queue)
            self._queue.clear()
        _deliver(left, [Unavailable("the service is stopping: retry with the same ids")] * len(left))

    @property
    def refused(self) -> str | None:
        """Why Postgres did not store the last events; None where it did, or nobody has tried of late."""
        at, cause = self._refused or (-REMEMBERED_SECONDS, None)
        return cause if time.monotonic() - at < REMEMBERED_SECONDS else None

    @property
    def queued_events(self) -> int:
        """Events that wait for the next group."""
        return self._queued_events

    def _enqueue(self, waiting: Waiting) -> None:
        with self._lock:
            if self._closing:
                raise Unavailable("the service is stopping: retry with the same ids")
            total = self._queued_events + len(waiting.events)
            if self._queue and total > self._queue_limit:
                raise Unavailable(f"{self._queued_events} events are waiting already: retry with the same ids")
            self._queue.append(waiting)
            self._queued_events = total

    def _wake_up(self) -> None:
        with self._lock:
            if not self._first_is_writing:
                self._wake_first.notify()
            elif self._queued_events >= SECOND_FROM:
                self._wake_second.notify()

    def _note(self, refusal: str | None) -> None:
        """What a writer heard of Postgres last."""
        if refusal is None:
            self._refused = None
            self._on_commit()
        else:
            self._refused = time.monotonic(), refusal

    def _run(self, writer: EventWriter, taken: Callable[[], list[Waiting]]) -> None:
        if writer is self.first:
            writer.learn_version()
        while group := taken():
            _deliver(group, writer.outcomes([waiting.events for waiting in group]))
        writer.disconnect()

    def _taken_by_first(self) -> list[Waiting]:
        """Waits for any request. Empty when it is time to stop."""
        with self._lock:
            self._first_is_writing = False
            self._wake_first.wait_for(lambda: self._queue or self._closing)
            self._first_is_writing = True
            group = self._take()
            if self._queued_events >= SECOND_FROM:
                self._wake_second.notify()
        return group

    def _taken_by_second(self) -> list[Waiting]:
        """Waits for SECOND_FROM events. Empty when it is time to stop: what is left then the first writes."""
        while True:
            with self._lock:
                self._wake_second.wait_for(lambda: self._queued_events >= SECOND_FROM or self._closing)
                if self._closing:
                    return []
            # Before anything is taken: where there is no connection to be had, the first goes on.
            is_connected = self.second.connects()
            with self._lock:
                if not is_connected:
                    self._wake_second.wait_for(lambda: self._closing, CONNECT_AGAIN_SECONDS)
                elif self._queued_events >= SECOND_FROM:
                    return self._take()

    def _take(self) -> list[Waiting]:
        """Everything queued, up to GROUP_EVENTS."""
        group: list[Waiting] = []
        size = 0
        while self._queue and size < GROUP_EVENTS:
            group.append(self._queue.popleft())
            size += len(group[-1].events)
        self._queued_events -= size
        return group


def _deliver(group: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
    """Wakes those who wait, each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Outcome]]] = {}
    for waiting, outcome in zip(group, outcomes, strict=True):
        if waiting.loop is None:
            _resolve([(waiting, outcome)])
        else:
            by_loop.setdefault(waiting.loop, []).append((waiting, outcome))
    for loop, answers in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, answers)


def _resolve(answers: Sequence[tuple[Waiting, Outcome]]) -> None:
    for waiting, outcome in answers:
        if waiting.answer.done():
            continue
        if isinstance(outcome, Exception):
            waiting.answer.set_exception(outcome)
        else:
            waiting.answer.set_result(outcome)


def _no_answer() -> Unavailable:
    return Unavailable("Postgres did not answer in time, the outcome is unknown: retry with the same ids")
