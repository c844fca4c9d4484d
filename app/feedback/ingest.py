"""Group commit: concurrent requests hand their events to one thread, which writes whatever has queued up in one
transaction and wakes them once it is durable. There is no timer: what queued during the last commit is the batch.

A request gets 503 when the queue is full, or when Postgres is away or did not confirm in time; a retry with the
same ids is always safe. A batch that fails for another reason is retried request by request, so that one
request which can't be stored doesn't fail the others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis
from sqlalchemy import Connection, Engine
from sqlalchemy import exc as database_errors

from app.catalog import versions
from app.errors import Invalid, SegueError, Unavailable
from app.feedback.cache_version import SETTLE_SECONDS
from app.feedback.dirty_marks import OutcomeUnknown, ViewWriter
from app.feedback.event_log import store
from app.feedback.events import Event, Receipt
from app.settings import Settings

__all__ = ["Event", "Ingest", "Receipt"]

GROUP_EVENTS = 5_000
"""A group takes no further request beyond this many events: 0.2 s of work."""
REMEMBERED_SECONDS = 30.0
"""So long a refusal is told of where nobody tries again."""
TRY_AGAIN = frozenset({"40001", "40P01"})
"""SQLSTATEs of a serialization failure and a deadlock: the same group may well succeed now."""

logger = logging.getLogger(__name__)


Given = tuple[Receipt, float]
"""A receipt, and the monotonic second before which it must not be given out."""
Outcome = Given | Exception


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in the queue. loop: where it waits; None for a thread that waits by itself."""

    events: Sequence[Event]
    answer: asyncio.Future[Given] | futures.Future[Given]
    loop: asyncio.AbstractEventLoop | None


class Ingest:
    """The writer thread and its queue. One per process; `close` before the engine is disposed of."""

    def __init__(
        self,
        engine: Engine,
        cache: Redis,
        settings: Settings,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """cache, settle_seconds: as for ViewWriter. on_commit: called in the thread after each commit."""
        self.views = ViewWriter(cache, ttl_seconds=settings.view_ttl_seconds, settle_seconds=settle_seconds)
        self._engine = engine
        self._auto_create = settings.auto_create
        self._on_commit = on_commit
        self._queue_limit = settings.ingest_queue
        self._drain_seconds = settings.drain_seconds
        # A statement ends by itself within database_timeout_seconds; a stopped server doesn't end it.
        self._patience = 2 * settings.database_timeout_seconds
        self._queue: deque[Waiting] = deque()
        self._queued_events = 0
        self._refused: tuple[float, str] | None = None
        self._closing = False
        self._wake = threading.Condition()
        self._db: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self._thread.start()

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
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(self._drain_seconds)
        with self._wake:
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
        with self._wake:
            if self._closing:
                raise Unavailable("the service is stopping: retry with the same ids")
            total = self._queued_events + len(waiting.events)
            if self._queue and total > self._queue_limit:
                raise Unavailable(f"{self._queued_events} events are waiting already: retry with the same ids")
            self._queue.append(waiting)
            self._queued_events = total

    def _wake_up(self) -> None:
        with self._wake:
            self._wake.notify()

    def _run(self) -> None:
        with suppress(database_errors.SQLAlchemyError):
            self._learn_version()
        while group := self._take():
            _deliver(group, self._outcomes(group))
        self._disconnect()

    def _learn_version(self) -> None:
        with self._connection().begin():
            self.views.observe(versions.read(self._connection())["cache"])

    def _take(self) -> list[Waiting]:
        """Everything queued, up to GROUP_EVENTS; waits for the first. Empty when it is time to stop."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing)
            group: list[Waiting] = []
            size = 0
            while self._queue and size < GROUP_EVENTS:
                group.append(self._queue.popleft())
                size += len(group[-1].events)
            self._queued_events -= size
        return group

    def _outcomes(self, group: Sequence[Waiting], *, again: bool = True) -> list[Outcome]:
        """One outcome per request; never raises, for the thread must survive."""
        try:
            return self._write([waiting.events for waiting in group])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            return self._after(error, group, again)

    def _write(self, requests: Sequence[Sequence[Event]]) -> list[Outcome]:
        # What was on screen is no part of a past: it would have every next view built again for nothing.
        users = {event.user_id for events in requests for event in events if event.kind != "impression"}
        db, gone = self._connection(), set[str]()
        with self.views.changing(db, users, wait=False) as change:
            receipts = store(db, requests, auto_create=self._auto_create, gone=gone)
            # A mark would be a key in the cache that names who was erased.
            users -= gone
        self._refused = None
        self._on_commit()
        return [receipt if isinstance(receipt, Invalid) else (receipt, change.settled_at) for receipt in receipts]

    def _after(self, error: Exception, group: Sequence[Waiting], again: bool) -> list[Outcome]:
        if not isinstance(error, OutcomeUnknown) and _was_cut_off(error) and again:
            self._disconnect()
            return self._outcomes(group, again=False)
        if _is_about_postgres(error):
            cause = _first_line(error)
            logger.warning("a batch of %d requests was not stored: %s", len(group), cause)
            self._refused = time.monotonic(), cause
            self._disconnect()
            return [_as_answer(error)] * len(group)
        if len(group) == 1:
            return [_as_answer(error)]
        return [outcome for waiting in group for outcome in self._outcomes([waiting])]

    def _connection(self) -> Connection:
        # Kept between groups: taking one from the pool costs a ping of its own.
        if self._db is None:
            self._db = self._engine.connect()
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(database_errors.SQLAlchemyError):
                db.invalidate()
                db.close()


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


def _was_cut_off(error: Exception) -> bool:
    """Whether the connection was lost, or the transaction chosen as a victim, before its commit was sent."""
    if not isinstance(error, database_errors.DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "pgcode", None) in TRY_AGAIN


def _first_line(error: Exception) -> str:
    """Not all of it: SQLAlchemy repeats the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _is_about_postgres(error: Exception) -> bool:
    """Whether the server is at fault and not what it was asked to store."""
    return isinstance(
        error,
        (
            Unavailable,
            database_errors.OperationalError,
            database_errors.InterfaceError,
            database_errors.InternalError,
            database_errors.TimeoutError,
        ),
    )


def _as_answer(error: Exception) -> Exception:
    """The error as the caller should hear of it."""
    if isinstance(error, SegueError):
        return error
    if _is_about_postgres(error):
        return Unavailable("Postgres did not take the events, nothing was stored: retry with the same ids")
    if isinstance(error, (database_errors.DataError, database_errors.StatementError, ValueError, TypeError)):
        return Invalid(f"an event can't be stored: {error}")
    return error


def _no_answer() -> Unavailable:
    return Unavailable("Postgres did not answer in time, the outcome is unknown: retry with the same ids")
