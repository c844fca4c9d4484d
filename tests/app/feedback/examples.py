"""Events for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from app.feedback.events import Event

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
