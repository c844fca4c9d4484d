"""Notes exposures before the model runs, and writes them down behind the answers.

Each is noted once per worker, in memory and in a file that outlives the process (`spool`), and stored in batches by a
thread, which also stores what processes that are gone left behind. Only the first exposure in an experiment that is
restricted to a route is waited for: the user's next request may come to another worker, with another route, and must
find it in the user's past. What can't be kept is counted, for results to heed. Never fails a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg2
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from app import telemetry
from app.experiments.assigning import Assigned, Run
from app.experiments.exposures import Exposure, Lost, Mark, line_of, line_of_losses, read_lines, store
from app.experiments.spool import Spool, left_behind
from app.feedback.dirty_marks import OutcomeUnknown, ViewWriter

log = logging.getLogger(__name__)

BATCH = 1_000
LINGER_SECONDS = 0.2
ADOPT_SECONDS = 10.0
"""Between two looks for files of processes that are gone."""
WAIT_SECONDS = 2.0
"""A request waits no longer for a first exposure to be known everywhere: as long as for anything of Postgres."""
PAUSE_SECONDS = 1.0
"""After Postgres failed."""
USERS_REMEMBERED = 10_000
"""At least, by one worker; twice as many at most: 12 MB, with one experiment."""
_NOT_STORABLE = (DataError, IntegrityError, psycopg2.DataError, psycopg2.IntegrityError, ValueError, TypeError)
_ABOUT_POSTGRES = (SQLAlchemyError, psycopg2.Error, OutcomeUnknown)
_Marks = dict[tuple[str, int, str], frozenset[Mark] | None]
"""By key, run and variant; None: the exposure could not be kept, and is counted as lost."""


class ExposureLog:
    """A bounded list and one thread behind it. `note` is for one event loop."""

    def __init__(self, engine: Engine, views: ViewWriter, *, folder: Path, database_id: UUID, capacity: int) -> None:
        """folder: of the spool files; those of one database take over from each other."""
        self._engine, self._views, self._capacity = engine, views, capacity
        self._folder, self._name = folder, str(database_id)
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._known = _Known(USERS_REMEMBERED)
        self._lock = threading.Lock()
        self._spool = Spool(folder, self._name)
        self._waiting: list[Exposure] = []
        self._losses: Counter[Lost] = Counter()
        self._asking: list[asyncio.Future[None]] = []
        self._wake, self._hurry, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="exposures", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Exposures that wait to be stored."""
        return len(self._waiting)

    def note(
        self,
        mine: Sequence[Assigned],
        *,
        user_id: str,
        route: str,
        surface: str,
        release: str | None,
        request_id: str,
        marks: Collection[Mark] = (),
        fixed: Collection[Run] = (),
        deletions: str = "",
    ) -> asyncio.Future[None] | None:
        """Notes what is new of these; what `known_everywhere` waits for, None where there is nothing to wait for.

        marks: of this request; `forced` is added where it holds of one: that variant is part of what the others are
            compared by. fixed: runs of which the user's past tells already.
        deletions: their version; after each, users may be others under the same id.
        """
        known = self._known.of(user_id, deletions)
        if any(each.is_forced for each in mine):
            marks = (*marks, "forced")
        news: list[Exposure] = []
        for each in mine:
            identity = (each.experiment.key, each.experiment.run, each.variant.name)
            marked = frozenset(marks)
            before = known.get(identity)
            if before is not None and marked <= before:
                continue
            exposure = Exposure(
                each.experiment.key, each.experiment.run, user_id, each.variant.name, datetime.now(UTC), route, surface,
                release, request_id, self._worker, tuple(sorted(marked)),
                is_fixing=before is None and each.experiment.route is not None and identity[:2] not in fixed,
            )  # fmt: skip
            if len(self._waiting) < self._capacity:
                news.append(exposure)
                known[identity] = marked if before is None else marked | before
            elif identity not in known:
                # The next request tries again, and is not counted once more.
                known[identity] = None
                self._lost([exposure])
        return self._put(news) if news else None

    def exposed(self, user_id: str, deletions: str) -> frozenset[Run]:
        """Runs in which this worker has noted the user: for when nothing else can tell."""
        return frozenset((key, run) for key, run, _ in self._known.of(user_id, deletions))

    def close(self, timeout_seconds: float = 10) -> None:
        """Stores what waits, or leaves it to whoever starts next."""
        self._closing.set()
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout_seconds)

    def _put(self, news: Sequence[Exposure]) -> asyncio.Future[None] | None:
        is_fixing = any(each.is_fixing for each in news) and not self._is_failing
        asking = asyncio.get_running_loop().create_future() if is_fixing else None
        with self._lock:
            for each in news:
                self._waiting.append(each)
                self._spool.append(line_of(each))
            if asking is not None:
                self._asking.append(asking)
        if is_fixing:
            self._hurry.set()
        self._wake.set()
        return asking

    def _lost(self, exposures: Sequence[Exposure]) -> None:
        with self._lock:
            for each in exposures:
                self._losses[Lost(each.experiment, each.run, each.variant, each.exposed_at.date())] += 1
                telemetry.EXPOSURES_LOST.labels(each.experiment, each.variant).inc()

    def _run(self) -> None:
        looked_at = -ADOPT_SECONDS
        while not (self._closing.is_set() and not self._waiting):
            if time.monotonic() - looked_at >= ADOPT_SECONDS:
                self._adopt()
                looked_at = time.monotonic()
            if not self._wake.wait(ADOPT_SECONDS):
                continue
            self._hurry.wait(LINGER_SECONDS)
            self._wake.clear()
            self._hurry.clear()
            if not self._write_waiting():
                break
        self._leave()

    def _write_waiting(self) -> bool:
        """Whether all that waited is stored, or can't be for a reason of its own; False: it is time to stop."""
        with self._lock:
            batch, self._waiting = self._waiting, []
            asking, self._asking = self._asking, []
            file = self._spool.turn()
        is_over = all(self._stored(some, asking) for some in _batches(batch)) and self._stored([], asking)
        _answer(asking)
        if is_over and file is not None:
            file.clear()
        if not is_over and self._spool.is_failing:
            self._lost(batch)
        return is_over

    def _stored(self, batch: Sequence[Exposure], asking: list[asyncio.Future[None]]) -> bool:
        """While Postgres is away it is tried again, and others wait to be stored, but no request for it."""
        while batch or self._losses:
            try:
                self._store(batch)
            except _NOT_STORABLE as error:
                self._store_apart(batch, error)
            except _ABOUT_POSTGRES as error:
                self._note_failure(error)
                _answer(asking)
                if self._closing.wait(PAUSE_SECONDS):
                    return False
                continue
            except Exception as error:  # noqa: BLE001 - the thread must survive, and one row must not cost the others
                self._store_apart(batch, error)
            else:
                self._is_failing = False
                telemetry.EXPOSURES_WRITTEN.inc(len(batch))
            break
        return True

    def _store(self, batch: Sequence[Exposure]) -> None:
        with self._lock:
            losses = self._losses.copy()
        users: list[str] = []
        is_fixing = any(each.is_fixing for each in batch)
        with self._engine.connect() as db, self._views.changing(db, users, wait=is_fixing):
            kept = store(db, batch, losses)
            # Not of erased users: their keys in Redis are gone, and are to stay so.
            users += {each.user_id for each in kept if each.is_fixing}
        with self._lock:
            self._losses -= losses

    def _store_apart(self, batch: Sequence[Exposure], error: Exception) -> None:
        """What can't be stored is lost alone."""
        if len(batch) > 1:
            for each in batch:
                self._stored([each], [])
            return
        log.error("exposures: %s can't be stored", [each.identity for each in batch], exc_info=error)
        self._lost(batch)

    def _note_failure(self, error: Exception) -> None:
        telemetry.DEPENDENCY_ERRORS.labels("postgres").inc()
        if not self._is_failing:
            log.warning("exposures wait for Postgres: %s", str(error).strip().partition("\n")[0])
        self._is_failing = True

    def _adopt(self) -> None:
        """Stores what processes that are gone have left behind."""
        for file in left_behind(self._folder, self._name):
            found = read_lines(file.lines())
            is_over = all(self._stored(some, []) for some in _batches(found.exposures))
            if is_over:
                with self._lock:
                    self._losses += found.losses
                if not (is_over := self._stored([], [])):
                    with self._lock:
                        self._losses -= found.losses  # they stay in that file
            file.close(delete=is_over)
            if not is_over:
                return

    def _leave(self) -> None:
        """What could not be stored stays in the files."""
        with self._lock:
            left, self._waiting = self._waiting, []
        if left and self._spool.is_failing:
            self._lost(left)
        with self._lock:
            if self._losses:
                self._spool.append(line_of_losses(self._losses))
            self._spool.close()


class _Known:
    """Marks by experiment, run and variant, by user. When it is full, those go that have not been seen for longest."""

    def __init__(self, users: int) -> None:
        self._users = users
        self._deletions = ""
        self._newer: dict[str, _Marks] = {}
        self._older: dict[str, _Marks] = {}

    def of(self, user_id: str, deletions: str) -> _Marks:
        """To be changed by the caller. deletions: their version; under another nothing is known of anyone."""
        if deletions != self._deletions:
            self._deletions, self._newer, self._older = deletions, {}, {}
        known = self._newer.get(user_id)
        if known is None:
            if len(self._newer) >= self._users:
                self._newer, self._older = {}, self._newer
            known = self._newer[user_id] = self._older.pop(user_id, {})
        return known


def _batches(exposures: Sequence[Exposure]) -> list[Sequence[Exposure]]:
    return [exposures[start : start + BATCH] for start in range(0, len(exposures), BATCH)]


def _answer(asking: list[asyncio.Future[None]]) -> None:
    """Lets those go on who wait, and forgets them."""
    while asking:
        future = asking.pop()
        # Where its loop is closed, nobody waits any more.
        with suppress(RuntimeError):
            future.get_loop().call_soon_threadsafe(_done, future)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
