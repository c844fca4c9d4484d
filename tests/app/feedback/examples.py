"""Events for tests, and a reader's generation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import redis

from app.feedback.events import Event
from app.feedback.user_state import View, planting

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
A_SERVER = "the run id of a Redis server"


def an_event(
    user_id: str = "ann",
    item_id: str = "dune",
    kind: str = "view",
    *,
    value: float | None = None,
    minute: float | None = 0,
    event_id: str | None = None,
) -> Event:
    """minute: after noon of a day in the past; None: now."""
    timestamp = None if minute is None else NOON + timedelta(minutes=minute)
    return Event(event_id or uuid4().hex, user_id, item_id, kind, value, timestamp)


def planted(cache: redis.Redis, cache_version: str, user_id: str, found: View) -> View:
    """What was found, with a generation where it had none, as `ContextReader` does it before a rebuild."""
    if found.generation is None and found.installable:
        for command in planting(cache_version, user_id):
            found = found._replace(generation=cache.execute_command(*command))
    return found
