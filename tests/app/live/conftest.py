"""An eraser and followers on real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import Engine, text

from app.erasure import erase_user
from app.feedback.events import Event
from app.feedback.ingest import Ingest
from app.live.follower import LiveFollower
from app.settings import Settings
from tests.transactions import await_all_before

NOW = datetime.now(UTC).replace(microsecond=0)
Follow = Callable[[], LiveFollower]
numbers = count()


def an_event(
    user: str, item: str, kind: str = "click", *, ago: timedelta = timedelta(), value: float | None = None
) -> Event:
    return Event(f"e{next(numbers)}", user, item, kind, value, NOW - ago)


def row_of(engine: Engine, item: str) -> int:
    with engine.connect() as db:
        row: int = db.execute(text("select row from items where item_id = :item"), {"item": item}).scalar_one()
        return row


def user_row_of(engine: Engine, user: str) -> int:
    with engine.connect() as db:
        row: int = db.execute(text("select row from users where user_id = :user"), {"user": user}).scalar_one()
        return row


@pytest.fixture
def settings() -> Settings:
    return Settings(live_checkpoint_seconds=0.2, refresh_seconds=0.05)


@pytest.fixture
def erase(engine: Engine, ingest: Ingest) -> Callable[[str], object]:
    return lambda user_id: erase_user(engine, ingest.views, user_id)


@pytest.fixture
def follow(engine: Engine, settings: Settings) -> Iterator[Follow]:
    """Starts a follower, which counts all that was committed before; all of them are closed at the end."""
    followers: list[LiveFollower] = []

    def start() -> LiveFollower:
        await_all_before(engine)
        followers.append(LiveFollower(engine, settings))
        assert followers[-1].caught_up(60)
        return followers[-1]

    yield start
    for follower in followers:
        follower.close()
