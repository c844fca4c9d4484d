"""What is kept for how long, and how it goes: in small batches, by one process, beside everything else.

First the floors move: what is older is not taken in any more, for its id may go with it. Then rows go, a batch per
transaction, each under the lock that every writer of events shares, so nobody waits but an erasure, for one batch. Old
impressions, exposures, events of what was on screen and audit lines are deleted; old interactions are thinned out
(`live.compaction`). docs/decisions/0014 says why nothing that is answered changes by it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime

from psycopg2 import errors
from redis import Redis, RedisError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from app import telemetry
from app.erasure import forget_late
from app.feedback.dirty_marks import ERASURE_LOCK
from app.live import compaction
from app.settings import Settings
from app.storage.database import POSTGRES_ERRORS
from app.storage.patience import be_patient

PRUNER_LOCK = 7_210_005
"""Advisory lock of the process that prunes."""
ROWS_PER_BATCH = 2_000
EVENTS_PER_BATCH = 10_000
"""That are looked through: 0.4 s. Each batch writes the sums of the items that it touches, so small ones write much."""
STEP_TIMEOUT = "5min"
"""Of statements that read a user's whole past, or who did something on a day."""
FIRST_SECONDS = 60.0
"""A process that starts waits up to so long before its first round, so as not to be in the way; after a failure too."""
PATIENCE = "50ms"
"""So long writers may be held up while a floor moves, once a day; where that is not enough it is tried again."""
TRIES, BETWEEN_SECONDS = 20, 0.5

log = logging.getLogger(__name__)

Pause = Callable[[float], None]
"""Called after each batch with the seconds that it took."""

# Oldest first, so that an interrupted round has done the most urgent.
DELETE = {
    "impressions": """
        DELETE FROM impressions WHERE request_id IN (
            SELECT request_id FROM impressions WHERE shown_at < %(floor)s ORDER BY shown_at LIMIT %(rows)s)
    """,
    # Those of a running experiment say since when a user is in it, however long ago that was.
    "exposures": """
        DELETE FROM exposures WHERE (experiment, run, user_id, variant) IN (
            SELECT experiment, exposures.run, user_id, variant
            FROM experiments JOIN exposures ON experiment = key AND exposures.run = experiments.run
            WHERE stopped_at < %(floor)s LIMIT %(rows)s)
    """,
    # With the ids: an erasure finds them by the rows.
    "on_screen": """
        WITH gone AS (
            DELETE FROM on_screen WHERE seq IN (
                SELECT seq FROM on_screen WHERE "timestamp" < %(floor)s ORDER BY "timestamp" LIMIT %(rows)s)
            RETURNING event_id
        ), ids AS (
            DELETE FROM event_ids USING gone WHERE event_ids.event_id = gone.event_id
        )
        SELECT FROM gone
    """,
    "audit_log": """
        DELETE FROM audit_log WHERE id IN (SELECT id FROM audit_log WHERE at < %(floor)s ORDER BY id LIMIT %(rows)s)
    """,
}
_MIDNIGHT = "SELECT date_trunc('day', now() - make_interval(days => %(days)s), 'UTC')"
_MOVE = """
    INSERT INTO retention_floors (what, kept_from) VALUES (%(what)s, %(floor)s)
    ON CONFLICT (what) DO UPDATE SET kept_from = excluded.kept_from
"""
_DONE = "UPDATE retention_floors SET pruned_to = %(floor)s WHERE what = 'events'"


def prune(engine: Engine, settings: Settings, *, pause: Pause = lambda _: None) -> Counter[str] | None:
    """One round: how many rows of each table went. None where another process is at it.

    Stops early, to go on in the next round, where a floor can't move for writers that don't end, or where the live
    signals have not stored yet what would go.
    """
    with _alone(engine) as is_ours:
        if not is_ours:
            return None
        gone: Counter[str] = Counter()
        days = {"impressions": settings.impressions_days, "exposures": settings.impressions_days,
                "on_screen": settings.impressions_days, "audit_log": settings.audit_days}  # fmt: skip
        for table, kept_days in days.items():
            if kept_days:
                gone[table] = _delete(engine, table, _midnight(engine, kept_days), pause)
        if settings.events_days:
            gone["interactions"] = _thin_out(engine, settings, _midnight(engine, settings.events_days), pause)
    for table, rows in gone.items():
        telemetry.PRUNED_ROWS.labels(table).inc(rows)
    telemetry.PRUNED_AT.set_to_current_time()
    return gone


class RetentionKeeper:
    """A thread that prunes every `prune_seconds`, and tells Redis of erasures that it has not heard of."""

    def __init__(self, engine: Engine, cache: Redis, settings: Settings) -> None:
        self._engine, self._cache, self._settings = engine, cache, settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends after the batch at hand."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        seconds = self._settings.prune_seconds
        soon = min(FIRST_SECONDS, seconds)
        wait = random.uniform(0, soon)  # noqa: S311 - no secret
        while not self._stop.wait(wait):
            wait = seconds if self._round() else soon

    def _round(self) -> bool:
        """Whether it came to its end."""
        try:
            gone = prune(self._engine, self._settings, pause=self._pause)
            late = forget_late(self._engine, self._cache)
        except _Stopped:
            return False
        except (*POSTGRES_ERRORS, RedisError) as error:
            log.warning("not pruned: %s", str(error).strip().partition("\n")[0])
        except Exception:
            # The thread must survive.
            log.exception("not pruned")
        else:
            if gone and gone.total():
                log.info("pruned: %s", ", ".join(f"{rows} of {table}" for table, rows in gone.items() if rows))
            if late:
                log.info("the keys of %d erased users were taken out of Redis once more", late)
            return True
        return False

    def _pause(self, took: float) -> None:
        """Half of the time belongs to others."""
        if self._stop.wait(took):
            raise _Stopped


class _Stopped(Exception):
    """The process ends."""


def _delete(engine: Engine, table: str, floor: datetime, pause: Pause) -> int:
    if table == "on_screen" and not _moved(engine, table, floor):
        return 0
    gone = 0
    while True:
        started = time.monotonic()
        with engine.begin() as db:
            _hold_off_erasures(db)
            rows = db.exec_driver_sql(DELETE[table], {"floor": floor, "rows": ROWS_PER_BATCH}).rowcount
        gone += rows
        if rows < ROWS_PER_BATCH:
            return gone
        pause(time.monotonic() - started)


def _thin_out(engine: Engine, settings: Settings, floor: datetime, pause: Pause) -> int:
    if not _moved(engine, "events", floor):
        return 0
    gone = 0
    with _patient(engine) as db:
        with db.begin():
            statement = "SELECT pruned_to FROM retention_floors WHERE what = 'events'"
            since: datetime | None = db.exec_driver_sql(statement).scalar_one()
            if since == floor or not compaction.is_counted(db, floor):
                return 0
            users = compaction.users_between(db, since, floor)
        for some in _batches(users):
            started = time.monotonic()
            with db.begin():
                _hold_off_erasures(db)
                gone += compaction.compact(db, settings.feedback_weights, some, floor)
            pause(time.monotonic() - started)
        with db.begin():
            db.exec_driver_sql(_DONE, {"floor": floor})
    return gone


def _batches(users: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Users whose events make a batch together, or one by one where they did more."""
    batch: list[int] = []
    rows = 0
    for user, events in users:
        if batch and rows + events > EVENTS_PER_BATCH:
            yield batch
            batch, rows = [], 0
        batch.append(user)
        rows += events
    if batch:
        yield batch


def _midnight(engine: Engine, days: int) -> datetime:
    """The beginning of the day so many days ago, UTC: days are kept or pruned whole."""
    with engine.connect() as db:
        midnight: datetime = db.exec_driver_sql(_MIDNIGHT, {"days": days}).scalar_one()
        return midnight


def _moved(engine: Engine, what: str, floor: datetime) -> bool:
    """Whether from now on nothing older is taken in, because all transactions that might have are over.

    A floor never goes back, else a pruned event could be stored once more: where more days are kept than before, it
    stays until they have passed.
    """
    with engine.connect() as db:
        stored = db.execute(text("select kept_from from retention_floors where what = :what"), {"what": what}).scalar()
    if stored is not None and stored >= floor:
        return bool(stored == floor)
    for _ in range(TRIES):
        try:
            with engine.begin() as db:
                db.execute(text(f"set local lock_timeout = '{PATIENCE}'"))
                db.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": ERASURE_LOCK})
                db.exec_driver_sql(_MOVE, {"what": what, "floor": floor})
        except DBAPIError as error:
            if not isinstance(error.orig, errors.LockNotAvailable):
                raise
            time.sleep(BETWEEN_SECONDS)
        else:
            return True
    return False


def _hold_off_erasures(db: Connection) -> None:
    """Until the transaction ends: an erasure beside it and it would wait for each other's rows."""
    db.execute(text("select pg_advisory_xact_lock_shared(:lock)"), {"lock": ERASURE_LOCK})


@contextmanager
def _patient(engine: Engine) -> Iterator[Connection]:
    """A connection of its own that is not subject to the limits of requests."""
    with engine.connect() as db:
        db.detach()
        be_patient(db)
        with db.begin():
            db.execute(text(f"set statement_timeout = '{STEP_TIMEOUT}'"))
        yield db


@contextmanager
def _alone(engine: Engine) -> Iterator[bool]:
    """Whether no other process prunes now; it stays so within the block."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as db:
        is_ours = bool(db.scalar(text("select pg_try_advisory_lock(:lock)"), {"lock": PRUNER_LOCK}))
        try:
            yield is_ours
        finally:
            if is_ours:
                with suppress(*POSTGRES_ERRORS):
                    db.execute(text("select pg_advisory_unlock(:lock)"), {"lock": PRUNER_LOCK})
