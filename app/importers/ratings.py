"""A line of a movie data set's ratings as an event of kind `rating`, the same in every one of its formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.importers.rows import exactly, external_id, number, unix_time
from app.importers.staging import Event


@dataclass(frozen=True, slots=True)
class RatingReader:
    """Makes an event of the fields user, movie, rating, unix time.

    prefix: of the event ids, so that those of two formats differ
    most:   the scale's upper end; its lower end is 0, and 0–5 is what comes out
    latest: unix seconds beyond which a time is refused
    """

    prefix: str
    most: float
    latest: float

    def __call__(self, fields: Sequence[str]) -> Event:
        user_field, item_field, rating_field, time_field = exactly(fields, 4)
        user_id, item_id = external_id(user_field, "user"), external_id(item_field, "movie")
        value = number(rating_field, "rating", 0, self.most) * (5 / self.most)
        timestamp = unix_time(time_field, self.latest)
        # From what the file says, so that the same rating is the same event in every run.
        event_id = f"{self.prefix}:{user_id}:{item_id}:{timestamp:.0f}"
        return Event(event_id, user_id, item_id, "rating", value, timestamp)
