"""The file of a data set that holds its events: read as it is, or loaded up to a time and with its times moved."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine, text

from app.importers import ledger
from app.importers.bulk_load import Load, parsed
from app.importers.ledger import Source
from app.importers.staging import Event, store_events

AHEAD_SECONDS = 300
"""How far ahead of the server's clock an event may be (API.md)."""


def latest_allowed(engine: Engine) -> float:
    """Unix seconds: five minutes ahead of the database's clock, which also says when a row was received."""
    with engine.connect() as db:
        return _clock(db) + AHEAD_SECONDS


def latest_readable() -> float:
    """Unix seconds: five minutes ahead of this machine's clock, where events are read without a database."""
    return time.time() + AHEAD_SECONDS


def event_load(engine: Engine, events: Load[Event], *, to_now: bool = False, until: float | None = None) -> Load[Event]:
    """The load of a file of events, `events` being one that takes them as they are in the file.

    to_now: move all times so that the newest event of the file is of this moment; decided once per file, when
            its first line is imported, whatever a later run asks for
    until:  unix seconds in the file's own times; events from then on are counted as `later` and left out. Such
            an import has an entry of its own in the ledger, so that one of the whole file still brings the rest,
            with the times moved as much.
    """
    seconds = _shift_seconds(engine, events, to_now=to_now, decide=to_now or until is not None)
    if until is None:
        return replace(events, store=_StoreEvents(math.inf, seconds))
    part = Source(f"{events.source.name} until {float(until)!r}", events.source.fingerprint)
    ledger.open_entry(engine, part)
    ledger.decide_shift(engine, part, seconds)
    return replace(events, source=part, store=_StoreEvents(until, seconds))


def shift_decided(engine: Engine, events: Load[Event]) -> float:
    """Seconds that the load of these events adds to each time of the file."""
    return ledger.open_entry(engine, events.source).shift_seconds or 0.0


@dataclass(frozen=True, slots=True)
class _StoreEvents:
    """store_events for those before `until`, `shift_seconds` later than the file has them."""

    until: float
    shift_seconds: float

    def __call__(self, db: Connection, events: Sequence[Event]) -> Counter[str]:
        kept = [event for event in events if event.timestamp < self.until]
        counts = Counter(later=len(events) - len(kept))
        if self.shift_seconds:
            kept = [event._replace(timestamp=event.timestamp + self.shift_seconds) for event in kept]
        return counts + store_events(db, kept) if kept else counts


def _shift_seconds(engine: Engine, events: Load[Event], *, to_now: bool, decide: bool) -> float:
    """What is added to the file's times, as decided by the import that began it, or now where `decide` says so."""
    standing = ledger.open_entry(engine, events.source)
    if decide and standing.shift_seconds is None and not standing.lines_done and not standing.finished:
        standing = ledger.decide_shift(engine, events.source, _age_of_newest(engine, events) if to_now else 0.0)
    return standing.shift_seconds or 0.0


def _age_of_newest(engine: Engine, events: Load[Event]) -> float:
    """Whole seconds from the file's newest event to this moment; 0 for a file without events."""
    newest = max((event.timestamp for event in parsed(events)), default=math.nan)
    with engine.connect() as db:
        return math.floor(_clock(db) - newest) if math.isfinite(newest) else 0.0


def _clock(db: Connection) -> float:
    seconds: float = db.execute(text("select extract(epoch from now())::float8")).scalar_one()
    return seconds
