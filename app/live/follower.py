"""Follows the log of interactions in a thread of its own; what a worker's live signals are read from.

Every worker folds the log itself, so that how fresh it is depends on no other process. One of them, whoever holds an
advisory lock, also stores checkpoints; it loses the lock with its connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, Engine, text

from app import telemetry
from app.live import checkpoint, log
from app.live.checkpoint import Stored, Unsaved
from app.live.log import Horizon
from app.settings import Settings
from app.storage.database import POSTGRES_ERRORS
from app.storage.patience import be_patient, cut_off
from models.live.state import LiveState

PROJECTOR_LOCK = 7_210_004
"""Advisory lock of the process that stores checkpoints."""
EAGER_SECONDS = 1.0
"""So long after somebody waited for a watermark, each commit of this process is read at once."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.002, 0.05
"""Between two looks while somebody waits for a transaction that an older one holds back."""
SHARE_OF_TIME = 0.1
"""Storing checkpoints may take so much of the thread's time."""
HELD_BACK_SECONDS = 2.0
"""Behind by so much, it is looked up whose transaction is waited for."""
STEP_TIMEOUT = "5min"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One request that waits until `xid` is counted."""

    xid: int
    loop: asyncio.AbstractEventLoop
    counted: asyncio.Future[None]


class LiveFollower:
    """One per process. `state` is always the same object; `close` before the engine is disposed of."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.state = LiveState()
        self.watermark = 0
        """Everything that transactions below this number did is counted, if it is counted at all."""
        self._engine = engine.execution_options(isolation_level="REPEATABLE READ")
        self._weights = settings.feedback_weights
        self._fingerprint = checkpoint.fingerprint(settings.feedback_weights)
        self._refresh_seconds = settings.refresh_seconds
        self._checkpoint_seconds = settings.live_checkpoint_seconds
        self._drain_seconds = settings.drain_seconds
        self._db: Connection | None = None
        self._is_projector = False
        self._is_loaded = False
        self._unsaved = Unsaved()
        self._store_at = 0.0
        self._has_read = False
        """Whether there was anything in the log since the checkpoint."""
        self.held_back_by: str | None = None
        """Whose open transaction keeps what others committed from being counted; None where nobody's for long."""
        self._complete_at = time.monotonic()
        self._incomplete: tuple[int, float] | None = None
        self._caught_up = threading.Event()
        self._wake = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._waited_at = -EAGER_SECONDS
        self._poked = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._thread.start()

    def caught_up(self, seconds: float) -> bool:
        """Whether, within so many seconds, the state holds all that could be counted at some time since start."""
        return self._caught_up.wait(seconds)

    def counts(self, xid: int) -> bool:
        """Whether what this transaction did is in the state."""
        return xid < self.watermark

    @property
    def lag_seconds(self) -> float:
        """Since when something that was committed then is not in the state, or Postgres was not asked."""
        lag = time.monotonic() - self._complete_at
        telemetry.LIVE_LAG.set(lag)
        return lag

    async def wait_for(self, xid: int, seconds: float) -> bool:
        """`counts`, as soon as it is so, or after this many seconds."""
        waiting = _Waiting(xid, asyncio.get_running_loop(), asyncio.get_running_loop().create_future())
        with self._wake:
            self._waited_at = time.monotonic()
            if self.counts(xid):
                return True
            self._waiting.append(waiting)
            self._poked = True
            self._wake.notify()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiting.counted
        return self.counts(xid)

    def poke(self) -> None:
        """Something was committed here. Heard only where somebody waited of late: else events are read in batches."""
        if time.monotonic() - self._waited_at < EAGER_SECONDS:
            with self._wake:
                self._poked = True
                self._wake.notify()

    def close(self) -> None:
        """Stops following; the process that stores checkpoints stores a last one."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(self._drain_seconds / 2)
        if self._thread.is_alive() and (db := self._db) is not None:
            # Postgres hangs, or the last checkpoint takes too long: it can be done without.
            with suppress(*POSTGRES_ERRORS):
                cut_off(db)
            self._thread.join(self._drain_seconds / 2)

    def _run(self) -> None:
        while not self._closing:
            self._tried()
            telemetry.LIVE_LAG.set(time.monotonic() - self._complete_at)
            self._rest()
        if self._is_projector:
            self._store_at = 0.0
            self._tried()
        self._disconnect()

    def _tried(self) -> None:
        """One round; never raises, for the thread must survive."""
        try:
            self._follow()
            self._keep()
        except POSTGRES_ERRORS as error:
            telemetry.DEPENDENCY_ERRORS.labels("postgres").inc()
            logger.warning("the live signals wait for Postgres: %s", str(error).strip().partition("\n")[0])
            if self._db is None or _is_lost(self._db):
                self._disconnect()
        except Exception:
            # What was folded may be half of something.
            logger.exception("the live signals are loaded again")
            self._disconnect()

    def _rest(self) -> None:
        """Until it is time to look again, or somebody asks for it."""
        with self._wake:
            self._waiting = [waiting for waiting in self._waiting if not waiting.counted.done()]
            pause = self._refresh_seconds
            if self._waiting:
                waited = time.monotonic() - self._waited_at
                pause = min(max(FIRST_WAIT_SECONDS, waited / 4), LONGEST_WAIT_SECONDS)
            self._wake.wait_for(lambda: self._closing or self._poked, pause)
            self._poked = False

    def _follow(self) -> None:
        """Brings the state up to all that is committed."""
        if not self._is_loaded:
            self._load()
        while not self._closing:
            started = time.monotonic()
            db = self._connection()
            with db.begin():
                horizon = log.look(db, self.watermark)
                is_pruned = self.watermark < horizon.retractions_from <= horizon.latest
                if is_pruned or self.watermark > horizon.latest:
                    # It slept until what it needs was pruned, or the database is a restored one, younger than this.
                    self._is_loaded = False
                    self._load_in(db)
                    continue
                changes = log.changes(db, self._weights, self.state, horizon, since=self.watermark)
            self._has_read = self._has_read or horizon.fresh or horizon.erased
            if len(changes.visit_users) or len(changes.forgotten):
                holding = self.state.holding(changes.forgotten) if len(changes.forgotten) else _NONE
                self._unsaved.note(changes, holding)
                self.state.fold(changes)
                telemetry.LIVE_EVENTS.inc(len(changes.visit_users))
            self._advance(horizon.until)
            if horizon.until == horizon.latest:
                self._note_completeness(horizon, started)
                self._caught_up.set()
                return

    def _note_completeness(self, horizon: Horizon, looked_at: float) -> None:
        """An older transaction may be open, and what was committed since waits for it: of which moment is the state?

        Under load there always is one, if only for a moment. So it is noted what was over at some look, and the state
        is complete as of that look once all of it is counted.
        """
        if not horizon.held_back:
            self._complete_at, self._incomplete, self.held_back_by = looked_at, None, None
            return
        if self._incomplete is not None and self.watermark >= self._incomplete[0]:
            self._complete_at, self._incomplete, self.held_back_by = self._incomplete[1], None, None
        if self._incomplete is None:
            self._incomplete = horizon.beyond, looked_at
        if looked_at - self._complete_at > HELD_BACK_SECONDS:
            db = self._connection()
            with db.begin():
                self.held_back_by = log.holder(db)

    def _load(self) -> None:
        db = self._connection()
        with db.begin():
            self._load_in(db)

    def _load_in(self, db: Connection) -> None:
        """The state of the checkpoint where there is a fit one, else counted from all events."""
        # Until then nothing is known to be counted: a number below may have been given to another since.
        self.watermark, self._incomplete = 0, None
        stored = checkpoint.stored(db)
        if stored and stored.fingerprint == self._fingerprint and stored.watermark <= log.look(db, 0).latest:
            state, watermark = checkpoint.load(db), stored.watermark
            self._unsaved = Unsaved(since=watermark)
        else:
            logger.info("the live signals are counted from all events")
            state, watermark = log.counted_anew(db, self._weights)
            self._unsaved = Unsaved()
            self._unsaved.note_all(state)
        self.state.become(state)
        self._is_loaded = True
        self._advance(watermark)

    def _advance(self, watermark: int) -> None:
        with self._wake:
            self.watermark = watermark
            counted = [waiting for waiting in self._waiting if waiting.xid < watermark]
        for loop in {waiting.loop for waiting in counted}:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, [waiting for waiting in counted if waiting.loop is loop])

    def _keep(self) -> None:
        """Stores a checkpoint where it is time to and this process is the one that does."""
        now = time.monotonic()
        if now < self._store_at:
            return
        self._store_at = now + self._checkpoint_seconds
        db = self._connection()
        if not self._is_projector:
            with db.begin():
                self._is_projector = bool(db.scalar(text("select pg_try_advisory_lock(:key)"), {"key": PROJECTOR_LOCK}))
        if self._is_projector:
            self._store(db)
            took = time.monotonic() - now
            self._store_at = time.monotonic() + max(self._checkpoint_seconds, took / SHARE_OF_TIME)

    def _store(self, db: Connection) -> None:
        with db.begin():
            # What changes nothing (a dislike) moves the watermark, too: pruning waits for that.
            if self._unsaved.items or self._unsaved.users or self._unsaved.since is None or self._has_read:
                checkpoint.store(db, self.state, self._unsaved, Stored(self._fingerprint, self.watermark))
                saved = Unsaved(since=self.watermark)
            else:
                saved = self._unsaved
            checkpoint.prune(db)
        self._unsaved, self._has_read = saved, False

    def _connection(self) -> Connection:
        if self._db is None:
            with ExitStack() as stack:
                db = stack.enter_context(self._engine.connect())
                # One of its own: it holds a lock, and is not subject to the limits of requests.
                db.detach()
                with db.begin():
                    db.execute(text(f"set statement_timeout = '{STEP_TIMEOUT}'"))
                    db.execute(text(f"set application_name = 'segue live {os.getpid()}'"))
                    # Compiling a plan costs more than any of these run for.
                    db.execute(text("set jit = off"))
                be_patient(db)
                stack.pop_all()
            self._db = db
        return self._db

    def _disconnect(self) -> None:
        """And the state is loaded again: a Postgres that crashed gives numbers that it had not written down to others,
        so what lies below the watermark may yet come."""
        db, self._db = self._db, None
        self._is_projector = self._is_loaded = False
        if db is not None:
            with suppress(*POSTGRES_ERRORS):
                db.close()


_NONE = np.empty(0, np.int64)


def _is_lost(db: Connection) -> bool:
    """Whether the connection is at an end; an error alone, such as a full disk, leaves it whole."""
    return db.invalidated or bool(db.connection.dbapi_connection.closed)  # type: ignore[union-attr]


def _resolve(waiting: Iterable[_Waiting]) -> None:
    for each in waiting:
        if not each.counted.done():
            each.counted.set_result(None)
