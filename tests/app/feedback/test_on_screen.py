"""What was on screen is stored like any event, once, and is no part of what a user did."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from app.catalog.snapshot import CatalogSnapshot, refresh
from app.feedback import interactions
from app.feedback.events import Event
from app.feedback.ingest import Ingest
from app.feedback.user_state import UserView
from app.live.log import recount
from app.live.snapshot import PositionedSignals
from app.serving.fallback import release_without_models
from app.settings import DEFAULT_WEIGHTS, FEEDBACK_KINDS, Settings
from app.training.extract import extract
from models.contracts import Query
from tests.app.feedback.examples import NOON, an_event

ReadView = Callable[[str], UserView]


def rows(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    with engine.connect() as db:
        return [tuple(row) for row in db.execute(text(statement))]


def on_screen(item: str, minute: float, event_id: str | None = None) -> Event:
    return an_event("ann", item, "impression", minute=minute, event_id=event_id)


def test_it_is_stored_as_sent_and_apart(ingest: Ingest, engine: Engine) -> None:
    sent = Event("e1", "ann", "dune", "impression", None, NOON, "s1", "r1")
    receipt = ingest.submit_blocking([sent, an_event("ann", "emma", "view", event_id="e2")])
    assert (receipt.accepted, receipt.duplicates) == (2, 0)
    stored = """
        SELECT event_id, user_id, item_id, "timestamp", session_id, request_id FROM on_screen AS shown
        JOIN users ON users.row = user_row JOIN items ON items.row = item_row
    """
    assert rows(engine, stored) == [("e1", "ann", "dune", NOON, "s1", "r1")]
    assert rows(engine, "SELECT event_id, kind FROM interactions") == [("e2", "view")]


def test_the_same_id_is_stored_once_whatever_its_kind(ingest: Ingest, engine: Engine) -> None:
    assert ingest.submit_blocking([on_screen("dune", 1, "e1"), on_screen("dune", 1, "e1")]).duplicates == 1
    assert ingest.submit_blocking([on_screen("dune", 1, "e1")]).duplicates == 1
    assert ingest.submit_blocking([an_event("ann", "dune", "like", event_id="e1")]).duplicates == 1
    assert ingest.submit_blocking([an_event("ann", "dune", "like", event_id="e2")]).accepted == 1
    assert ingest.submit_blocking([on_screen("dune", 1, "e2")]).duplicates == 1
    assert rows(engine, "SELECT event_id FROM on_screen") == [("e1",)]
    assert rows(engine, "SELECT event_id FROM interactions") == [("e2",)]


def test_a_view_in_the_cache_stays_as_it_is(
    ingest: Ingest, cache: redis.Redis, read_view: ReadView, key: Callable[[], str]
) -> None:
    ingest.submit_blocking([an_event("ann", "dune", "like")])
    assert read_view("ann").seen.tolist() == [0]
    before = cache.hgetall(key())
    ingest.submit_blocking([on_screen("emma", 1)])
    assert b"view" in before
    assert cache.hgetall(key()) == before
    ingest.submit_blocking([on_screen("emma", 1), an_event("ann", "emma", "view")])
    assert sorted(read_view("ann").seen.tolist()) == [0, 1]


def test_a_cache_that_is_away_is_not_asked(engine: Engine, dead_cache: redis.Redis) -> None:
    writer = Ingest(engine, dead_cache, Settings(), settle_seconds=0)
    before = rows(engine, "SELECT seq FROM versions WHERE name = 'cache'")
    assert writer.submit_blocking([on_screen("dune", 1)]).accepted == 1
    assert rows(engine, "SELECT seq FROM versions WHERE name = 'cache'") == before
    writer.close()


def test_nothing_that_is_learned_or_counted_knows_of_it(ingest: Ingest, engine: Engine, read_view: ReadView) -> None:
    ingest.submit_blocking([*(on_screen("dune", n) for n in range(50)), an_event("bob", "emma", "view", minute=None)])
    view = read_view("ann")
    assert (view.interactions, view.positives, len(view.seen), len(view.rows)) == (0, 0, 0, 0)
    # What is committed can be read once no older transaction of the whole server is open.
    deadline = time.monotonic() + 60
    while not len(live := recount(engine, DEFAULT_WEIGHTS | {"impression": 1.0})[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert live.totals().tolist() == pytest.approx([0, 1.3])
    assert len(extract(engine, DEFAULT_WEIGHTS).dataset.interactions) == 1
    with engine.connect() as db:
        catalog, _ = refresh(db, CatalogSnapshot.empty())
    release = release_without_models(catalog)
    query = Query(limit=2, at=live.newest, live=PositionedSignals(live, release.rows))
    scores = release.recommenders["live_counts"].scores(query)
    assert scores[1] > scores[0]


def test_interactions_refuse_it(engine: Engine, ingest: Ingest) -> None:
    ingest.submit_blocking([an_event("ann", "dune", "view")])
    with pytest.raises(IntegrityError), engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO interactions (event_id, user_row, item_row, kind, timestamp)"
                " VALUES ('x', 0, 0, 'impression', now())"
            )
        )


@pytest.mark.parametrize("kind", [None, *FEEDBACK_KINDS])
def test_a_users_list_goes_through_both(ingest: Ingest, engine: Engine, kind: str | None) -> None:
    values = {"rating": 3.0, "listen": 0.5}
    sent = [
        an_event("ann", f"i{n % 7}", each, minute=n // 2, value=values.get(each), event_id=f"{n:02d}")
        for n, each in enumerate(FEEDBACK_KINDS * 3)
    ]
    ingest.submit_blocking([*sent, an_event("bob", "i1", "impression"), an_event("bob", "i1", "view")])
    expected = [event.event_id for event in reversed(sent) if kind in {None, event.kind}]
    listed: list[str] = []
    after = None
    with engine.connect() as db:
        while page := interactions.page(db, "ann", kind=kind, after_seq=after, limit=5):
            listed += [found["event_id"] for found in page]
            after = page[-1]["seq"]
            assert all(kind in {None, found["kind"]} for found in page)
    assert listed == expected
