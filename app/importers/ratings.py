"""A line of a movie data set's ratings as an event of kind `rating`, the same in every one of its formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine, text

from app.importers import ledger
from app.importers.bulk_load import Load, parsed
from app.importers.rows import exactly, external_id, number, unix_time
from app.importers.staging import Event

AHEAD_SECONDS = 300
"""How far ahead of the server's clock an event may be (API.md)."""


@dataclass(frozen=True, slots=True)
class RatingReader:
    """Makes an event of the fields user, movie, rating, unix time.

    prefix:        of the event ids, so that those of two formats differ
    most:          the scale's upper end; its lower end is 0, and 0–5 is what comes out
    latest:        unix seconds beyond which a time is refused
    shift_seconds: added to each time
    """

    prefix: str
    most: float
    latest: float
    shift_seconds: float = 0.0

    def __call__(self, fields: Sequence[str]) -> Event:
        user_field, item_field, rating_field, time_field = exactly(fields, 4)
        user_id, item_id = external_id(user_field, "user"), external_id(item_field, "movie")
        value = number(rating_field, "rating", 0, self.most) * (5 / self.most)
        timestamp = unix_time(time_field, self.latest)
        # From what the file says, so that the same rating is the same event in every run.
        event_id = f"{self.prefix}:{user_id}:{item_id}:{timestamp:.0f}"
        return Event(event_id, user_id, item_id, "rating", value, timestamp + self.shift_seconds)

    def shifted(self, seconds: float) -> RatingReader:
        return replace(self, shift_seconds=seconds)


def latest_allowed(engine: Engine) -> float:
    """Unix seconds: five minutes ahead of the database's clock, which also says when a row was received."""
    with engine.connect() as db:
        return _clock(db) + AHEAD_SECONDS


def shift_to_now(engine: Engine, ratings: Load[Event]) -> float:
    """Seconds that bring the newest of the ratings to this moment, as decided by the import that began them.

    `ratings` must read the times as they are in the file. 0 where the import began without a shift.
    """
    standing = ledger.open_entry(engine, ratings.source)
    if standing.shift_seconds is None and not standing.lines_done and not standing.finished:
        newest = max((event.timestamp for event in parsed(ratings)), default=math.nan)
        with engine.connect() as db:
            wanted = math.floor(_clock(db) - newest) if math.isfinite(newest) else 0.0
        standing = ledger.decide_shift(engine, ratings.source, wanted)
    return standing.shift_seconds or 0.0


def shift_decided(engine: Engine, ratings: Load[Event]) -> float:
    """Seconds that an earlier run of this import adds to each time; 0 where there was none."""
    return ledger.open_entry(engine, ratings.source).shift_seconds or 0.0


def _clock(db: Connection) -> float:
    seconds: float = db.execute(text("select extract(epoch from now())::float8")).scalar_one()
    return seconds
