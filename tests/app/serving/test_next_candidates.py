"""The question that a session puts to what foretells the next track."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis
from sqlalchemy import Engine, text

from app.feedback.sessions import LISTEN, Session
from app.feedback.user_view import UserView
from app.serving.inventory import Inventory, InventoryHost
from app.serving.next_candidates import Situation, session_query
from app.serving.popular_fills import PopularFills
from app.settings import Settings
from models.live.state import LiveState

BEGAN = 1_000.0


@pytest.fixture
def inventory(engine: Engine, redis_url: str, tmp_path: Path) -> Iterator[Inventory]:
    """Of six tracks."""
    with engine.begin() as db:
        db.execute(text("insert into items (item_id, categories) select n::text, '{}' from generate_series(1, 6) as n"))
    with redis.Redis.from_url(redis_url) as cache:
        yield InventoryHost(engine, cache, Settings(data_dir=tmp_path), LiveState()).current


def asked_past(inventory: Inventory, past: list[tuple[int, float]], *listens: tuple[int, float]) -> list[int]:
    """Rows of the past in the question of a session; rows and times."""
    view = replace(
        UserView.empty(),
        rows=np.array([row for row, _ in past], np.int32),
        weights=np.ones(len(past), np.float32),
        signs=np.ones(len(past), np.int8),
        timestamps=np.array([at for _, at in past]),
    )
    session = Session("life").with_listen(np.array([(row, 0.9, at) for row, at in listens], LISTEN))
    query = session_query(Situation("u", session, view, inventory, BEGAN, False, 1, "s", PopularFills()), 5)
    assert query.history is not None
    return [int(inventory.release.row_of_position[position]) for position in query.history.positions]


def test_a_past_that_was_read_late_is_the_one_from_before_the_session(inventory: Inventory) -> None:
    """Whichever worker reads it, and when: at the first call, or at the third, when it has the session's listens."""
    a, b, c, d, *_ = inventory.release.row_of_position.tolist()
    heard = (c, BEGAN), (d, BEGAN + 200)
    early = asked_past(inventory, [(a, 5.0), (b, BEGAN - 1)], *heard)
    late = asked_past(inventory, [(a, 5.0), (b, BEGAN - 1), (c, BEGAN), (d, BEGAN + 200)], *heard)
    assert early == late == [a, b]


def test_what_was_done_beside_the_session_is_not_from_before_it(inventory: Inventory) -> None:
    a, b, c, *_ = inventory.release.row_of_position.tolist()
    assert asked_past(inventory, [(a, 5.0), (b, BEGAN + 10)], (c, BEGAN)) == [a]


def test_a_track_of_the_session_that_was_heard_before_is_asked_of_as_the_sessions(inventory: Inventory) -> None:
    a, b, c, *_ = inventory.release.row_of_position.tolist()
    past = [(a, 5.0), (c, 6.0), (b, 7.0)]
    assert asked_past(inventory, past, (c, BEGAN)) == [a, b]
    assert asked_past(inventory, past) == [a, c, b]
