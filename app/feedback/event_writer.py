"""Writes groups of requests to Postgres, each in one transaction, and says what became of each request.

A group that fails for another reason than Postgres is written request by request, so that one request which can't be
stored doesn't fail the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from sqlalchemy import Connection, Engine
from sqlalchemy import exc as database_errors

from app.catalog import versions
from app.errors import Invalid, SegueError, Unavailable
from app.feedback.dirty_marks import OutcomeUnknown, ViewWriter
from app.feedback.event_log import store
from app.feedback.events import Event, Receipt
from app.storage.database import cause_of

TRY_AGAIN = frozenset({"40001", "40P01"})
"""SQLSTATEs of a serialization failure and a deadlock: the same group may well succeed now."""

Given = tuple[Receipt, float]
"""A receipt, and the monotonic second before which it must not be given out."""
Outcome = Given | Exception
Request = Sequence[Event]

logger = logging.getLogger(__name__)


class EventWriter:
    """What one thread writes with: a connection of its own, made anew where it was lost."""

    def __init__(
        self, engine: Engine, views: ViewWriter, *, auto_create: bool, tell: Callable[[str | None], None]
    ) -> None:
        """tell: is called after each commit, with None, and with the cause where Postgres refused a group."""
        self._engine = engine
        self._views = views
        self._auto_create = auto_create
        self._tell = tell
        self._db: Connection | None = None

    def learn_version(self) -> None:
        """Of the cache's keys, where Postgres says it now; else with the first group."""
        with suppress(database_errors.SQLAlchemyError), self.connection().begin():
            self._views.observe(versions.read(self.connection())["cache"])

    def outcomes(self, group: Sequence[Request], *, again: bool = True) -> list[Outcome]:
        """One outcome per request; never raises, for the thread must survive."""
        try:
            return self._write(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            return self._after(error, group, again)

    def connects(self) -> bool:
        """Whether there is a connection now."""
        with suppress(database_errors.SQLAlchemyError):
            self.connection()
        return self._db is not None

    def connection(self) -> Connection:
        """Kept between groups: taking one from the pool costs a ping of its own."""
        if self._db is None:
            self._db = self._engine.connect()
        return self._db

    def disconnect(self) -> None:
        """The next group gets a connection of its own."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(database_errors.SQLAlchemyError):
                db.invalidate()
                db.close()

    def _write(self, requests: Sequence[Request]) -> list[Outcome]:
        # What was on screen is no part of a past: it would have every next view built again for nothing.
        users = {event.user_id for events in requests for event in events if event.kind != "impression"}
        db, gone = self.connection(), set[str]()
        with self._views.changing(db, users, wait=False) as change:
            receipts = store(db, requests, auto_create=self._auto_create, gone=gone)
            # A mark would be a key in the cache that names who was erased.
            users -= gone
        self._tell(None)
        return [receipt if isinstance(receipt, Invalid) else (receipt, change.settled_at) for receipt in receipts]

    def _after(self, error: Exception, group: Sequence[Request], again: bool) -> list[Outcome]:
        if not isinstance(error, OutcomeUnknown) and _was_cut_off(error) and again:
            self.disconnect()
            return self.outcomes(group, again=False)
        if _is_about_postgres(error):
            cause = cause_of(error)
            logger.warning("a batch of %d requests was not stored: %s", len(group), cause)
            self._tell(cause)
            self.disconnect()
            return [_as_answer(error)] * len(group)
        if len(group) == 1:
            return [_as_answer(error)]
        return [outcome for request in group for outcome in self.outcomes([request])]


def _was_cut_off(error: Exception) -> bool:
    """Whether the connection was lost, or the transaction chosen as a victim, before its commit was sent."""
    if not isinstance(error, database_errors.DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "pgcode", None) in TRY_AGAIN


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
