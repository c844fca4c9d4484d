"""What was shown, written in batches behind the answers. Never fails or slows a request; losses are counted."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import psycopg2
import psycopg2.errors
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app import telemetry
from app.catalog import rules
from app.catalog.users import erased_at
from app.feedback.dirty_marks import ERASURE_LOCK
from app.serving.exploration import Draw
from app.serving.slate import Shown
from app.storage.database import cause_of

log = logging.getLogger(__name__)

BATCH = 500
LINGER_SECONDS = 0.5
ATTEMPTS = 2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
READ_ONLY = "25006"
"""SQLSTATE: of a server that was, or has just become, a replica."""
_ABOUT_POSTGRES = (
    SQLAlchemyError, psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction,
)  # fmt: skip
"""The server is at fault, not what it was asked to store; a cursor of psycopg2's raises its own errors."""

# One parameter for the whole batch: psycopg2 would take twenty times as long to write down the arrays one by one.
_INSERT = """
INSERT INTO impressions (request_id, shown_at, user_id, surface, route, recommender, release, variants,
                         first_position, item_rows, sources, scores, promoted, propensities, exploration)
SELECT request_id, shown_at, user_id, surface, route, recommender, release, variants,
       first_position, item_rows, sources, scores, promoted, propensities, exploration
FROM json_populate_recordset(NULL::impressions, %(pages)s)
ON CONFLICT (request_id) DO NOTHING
"""


class Impression(NamedTuple):
    """One page as it was answered.

    first_position: of the page's first item, from 1
    slate_id:       of the slate's first page, where the order of its organic items was drawn; None: it was not
    draw:           the one that was made for this page: for a slate's first, and where a later page needed more items
    """

    request_id: str
    shown_at: datetime
    user_id: str
    surface: str
    route: str
    recommender: str
    release: str | None
    variants: dict[str, str]
    first_position: int
    items: tuple[Shown, ...]
    slate_id: str | None = None
    draw: Draw | None = None

    def record(self) -> dict[str, Any]:
        """The row of the table, as JSON."""
        return {
            "request_id": self.request_id,
            "shown_at": self.shown_at,
            "user_id": self.user_id,
            "surface": self.surface,
            "route": self.route,
            "recommender": self.recommender,
            "release": self.release,
            "variants": self.variants,
            "first_position": self.first_position,
            "item_rows": [shown.row for shown in self.items],
            "sources": [shown.source for shown in self.items],
            "scores": [shown.score for shown in self.items],
            "promoted": [shown.promoted for shown in self.items],
        } | self._exploration()

    def _exploration(self) -> dict[str, Any]:
        if self.slate_id is None:
            return {}
        record = {"slate_id": self.slate_id} | ({"draw": self.draw.record()} if self.draw is not None else {})
        return {"propensities": [shown.propensity for shown in self.items], "exploration": record}


class ImpressionWriter:
    """A bounded queue and one thread behind it."""

    def __init__(self, engine: Engine, *, capacity: int) -> None:
        self._engine = engine
        # Python's own bounded queue is locked and told of in Python, which takes as long as to count an answer.
        self._queue: queue.SimpleQueue[Impression | None] = queue.SimpleQueue()
        self._capacity = capacity
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._closing = threading.Event()
        self._is_failing = False
        self._thread.start()

    def record(self, impression: Impression) -> None:
        """Returns at once; where the queue is full the impression is lost, and counted as lost."""
        if self._queue.qsize() < self._capacity:
            self._queue.put(impression)
        else:
            self._lost([impression])

    @property
    def queued(self) -> int:
        """Pages that wait to be written."""
        return self._queue.qsize()

    def close(self, timeout_seconds: float = 10) -> None:
        """Writes what is queued and stops."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            if self._queue.qsize() < BATCH:
                self._closing.wait(LINGER_SECONDS)
            batch, last = self._drain([first])
            self._write(batch)
            if last:
                return

    def _drain(self, batch: list[Impression]) -> tuple[list[Impression], bool]:
        while len(batch) < BATCH:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False

    def _write(self, batch: list[Impression]) -> None:
        """While Postgres is away it is tried again, and others queue up; when it is time to stop, not for long."""
        attempts, pause = 0, FIRST_PAUSE_SECONDS
        while True:
            try:
                self._insert(batch)
            except _ABOUT_POSTGRES as error:
                self._note(error)
                attempts += 1
                if attempts >= ATTEMPTS and (self._closing.is_set() or not _is_away(error)):
                    break
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - the thread must survive, and one page must not cost the others
                self._write_apart(batch, error)
                return
            else:
                self._is_failing = False
                telemetry.IMPRESSIONS_WRITTEN.inc(len(batch))
                return
        self._lost(batch)

    def _note(self, error: Exception) -> None:
        telemetry.DEPENDENCY_ERRORS.labels("postgres").inc()
        if not self._is_failing:
            log.warning("impressions wait for Postgres: %s", cause_of(error))
        self._is_failing = True

    def _write_apart(self, batch: list[Impression], error: Exception) -> None:
        """What can't be stored is lost alone."""
        if len(batch) > 1:
            for impression in batch:
                self._write([impression])
        else:
            log.error("impressions: %s can't be written", batch[0].request_id, exc_info=error)
            self._lost(batch)

    def _insert(self, batch: Sequence[Impression]) -> None:
        with self._engine.begin() as db:
            batch = _without_erased(db, batch)
            if not batch:
                return
            pages = orjson.dumps([impression.record() for impression in batch]).decode()
            db.connection.cursor().execute(_INSERT, {"pages": pages})
            promoted = Counter(shown.row for impression in batch for shown in impression.items if shown.promoted)
            rules.count_impressions(db, promoted)

    def _lost(self, batch: list[Impression]) -> None:
        for impression in batch:
            for variant in impression.variants.values() or ("",):
                telemetry.IMPRESSIONS_LOST.labels(variant).inc()


def _without_erased(db: Connection, batch: Sequence[Impression]) -> list[Impression]:
    """Not what was shown to users who were erased since. Erasures wait until this transaction is over."""
    db.exec_driver_sql("SELECT pg_advisory_xact_lock_shared(%(lock)s)", {"lock": ERASURE_LOCK})
    erased = erased_at(db, list({impression.user_id for impression in batch}))
    return [each for each in batch if each.user_id not in erased or erased[each.user_id] < each.shown_at]


def _is_away(error: Exception) -> bool:
    """Whether the server may well take it later: it is gone, full or read-only."""
    cause = getattr(error, "orig", None) or error
    is_gone = isinstance(cause, (psycopg2.OperationalError, psycopg2.InterfaceError, PoolTimeoutError))
    return is_gone or getattr(cause, "pgcode", None) == READ_ONLY
