"""What is older than the settings keep goes, and nothing that is answered changes by it."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import redis
from sqlalchemy import Engine, text

from app import retention, telemetry
from app.erasure import erase_user
from app.feedback import user_state
from app.feedback.dirty_marks import ERASURE_LOCK
from app.feedback.events import Event
from app.feedback.ingest import Ingest
from app.importers import staging
from app.live.check import check, differences
from app.live.follower import LiveFollower
from app.live.log import recount
from app.retention import PRUNER_LOCK, RetentionKeeper, prune
from app.settings import Settings
from models.live.state import LiveState
from tests.app.live.test_follower import caught_up
from tests.patience import until

LIKED = """
    select user_row, item_row, at from (
        select distinct on (user_row, item_row) user_row, item_row, kind, least(timestamp, received_at) as at
        from interactions where kind in ('like', 'unlike', 'dislike', 'hide') order by 1, 2, 4 desc, seq desc
    ) as decided where kind = 'like' order by 1, 2
"""
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
KINDS = ("view", "click", "like", "dislike", "unlike", "hide", "purchase", "rating", "listen")
VALUES = {"rating": (0.0, 1.5, 3.0, 5.0), "listen": (0.1, 0.5, 0.9)}
BUSY, IDLE = [f"u{n}" for n in range(6)], [f"v{n}" for n in range(40)]
USERS = [*BUSY, *IDLE]


@pytest.fixture
def settings() -> Settings:
    return Settings(live_checkpoint_seconds=0.1, refresh_seconds=0.05, events_days=60)


@pytest.fixture
def follower(engine: Engine, settings: Settings) -> Iterator[LiveFollower]:
    opened = LiveFollower(engine, settings)
    assert opened.caught_up(60)
    yield opened
    opened.close()


def a_past(seed: int, *, users: list[str], days: int, per_user: int) -> list[Event]:
    """What users did with few items, so that they come back to each: in every way, on many days."""
    chance = random.Random(seed)
    events = []
    for user in users:
        for _ in range(per_user):
            kind = chance.choice(KINDS)
            value = chance.choice(VALUES[kind]) if kind in VALUES else None
            # Few hours of the day, so that some fall together.
            at = NOW - chance.randrange(days) * DAY - timedelta(hours=chance.randrange(24))
            events.append(Event(f"{user}-{chance.random()}", user, f"i{chance.randrange(6)}", kind, value, at))
    return events


def rows(engine: Engine, table: str) -> int:
    with engine.connect() as db:
        count: int = db.execute(text(f"select count(*) from {table}")).scalar_one()
        return count


def answers(engine: Engine, settings: Settings) -> dict[str, Any]:
    """All that is read from pasts: each user's view and likes."""
    found: dict[str, Any] = {}
    with engine.connect() as db:
        for user in USERS:
            view = user_state.load(db, user, settings)
            found[user] = {
                name: value.tolist() if isinstance(value, np.ndarray) else value
                for name in view.__dataclass_fields__
                for value in [getattr(view, name)]
            }
        found["likes"] = [tuple(row) for row in db.execute(text("select * from likes order by 1, 2"))]
        found["likes that events tell of"] = [tuple(row) for row in db.execute(text(LIKED))]
    return found


def stored(engine: Engine, follower: LiveFollower) -> None:
    """Waits until the follower has counted and stored everything."""
    caught_up(engine, follower)

    def is_stored() -> bool:
        with engine.connect() as db:
            uncounted = "select exists (select from interactions where xid >= (select watermark from live_checkpoint))"
            return rows(engine, "live_checkpoint") == 1 and not db.execute(text(uncounted)).scalar_one()

    until(is_stored)


def is_a_recount(engine: Engine, state: LiveState, settings: Settings) -> None:
    recounted, _ = recount(engine, settings.feedback_weights)
    assert differences(state, recounted) == []
    assert check(engine, settings.feedback_weights).differences == []


def test_no_answer_changes_when_old_events_go(
    engine: Engine, ingest: Ingest, follower: LiveFollower, settings: Settings
) -> None:
    """Nor do live signals, in the process that counted them, from the checkpoint, or from nothing."""
    ingest.submit_blocking(a_past(1, users=BUSY, days=200, per_user=150))
    ingest.submit_blocking(a_past(5, users=IDLE, days=400, per_user=14))
    stored(engine, follower)
    before, events, totals = answers(engine, settings), rows(engine, "interactions"), follower.state.totals()
    gone = prune(engine, settings)
    assert gone is not None
    assert gone["interactions"] > events / 2
    assert rows(engine, "interactions") == rows(engine, "event_ids") == events - gone["interactions"]
    assert answers(engine, settings) == before
    assert follower.state.totals().tolist() == totals.tolist()
    is_a_recount(engine, follower.state, settings)
    with engine.begin() as db:
        young = db.execute(text("select count(*) from interactions where timestamp > now() - interval '60 days'"))
        assert young.scalar_one() > 100
        db.execute(text("truncate live_checkpoint, live_chunks"))
    anew = LiveFollower(engine, settings)
    assert anew.caught_up(60)
    is_a_recount(engine, anew.state, settings)
    assert differences(anew.state, follower.state) == []
    anew.close()

    # Life goes on: events on the same items, an erasure, and later another round, which finds the days in between.
    ingest.submit_blocking(a_past(2, users=BUSY, days=59, per_user=20))
    erase_user(engine, ingest.views, "u3")
    stored(engine, follower)
    is_a_recount(engine, follower.state, settings)
    before = answers(engine, settings)
    again = prune(engine, settings.model_copy(update={"events_days": 20}))
    assert again is not None
    assert again["interactions"] > 0
    assert answers(engine, settings) == before
    is_a_recount(engine, follower.state, settings)
    assert prune(engine, settings.model_copy(update={"events_days": 20})) == {
        "impressions": 0, "exposures": 0, "on_screen": 0, "interactions": 0,
    }  # fmt: skip


def test_what_was_pruned_and_is_sent_again_is_a_duplicate(
    engine: Engine, ingest: Ingest, follower: LiveFollower, settings: Settings
) -> None:
    old = [Event(f"e{n}", "ann", "a", "view", None, NOW - timedelta(days=80 + n)) for n in range(5)]
    seen = Event("seen", "ann", "a", "impression", None, NOW - timedelta(days=100))
    ingest.submit_blocking([*old, seen])
    stored(engine, follower)
    assert prune(engine, settings) == {"impressions": 0, "exposures": 0, "on_screen": 1, "interactions": 4}
    receipt = ingest.submit_blocking([*old, seen, Event("new", "bob", "b", "view", None, None)])
    assert (receipt.accepted, receipt.duplicates) == (1, 6)
    imported = [
        staging.Event(e.event_id, e.user_id, e.item_id, e.kind, None, e.timestamp.timestamp())
        for e in old
        if e.timestamp
    ]
    with engine.begin() as db:
        assert staging.store_events(db, imported) == {"stored": 0, "duplicates": 0, "erased_users": 0, "too_old": 5}
    assert (rows(engine, "interactions"), rows(engine, "on_screen"), rows(engine, "event_ids")) == (2, 0, 2)
    assert follower.state.totals().tolist()[:1] == pytest.approx([5 * 1.3])
    caught_up(engine, follower)


def test_floors_never_go_back(engine: Engine, ingest: Ingest, settings: Settings) -> None:
    """Else what was pruned could be stored once more."""
    prune(engine, settings.model_copy(update={"impressions_days": 10}))
    prune(engine, settings.model_copy(update={"impressions_days": 50}))
    old = Event("old", "ann", "a", "impression", None, NOW - 20 * DAY)
    assert ingest.submit_blocking([old]).duplicates == 1


def test_pages_and_audit_lines_go_by_age_in_batches(
    engine: Engine, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_PER_BATCH", 3)
    for n in range(10):
        at = NOW - timedelta(days=86 + n)
        ingest.submit_blocking([Event(f"e{n}", "ann", "a", "impression", None, at)])
        with engine.begin() as db:
            db.execute(
                text(
                    "insert into impressions (request_id, shown_at, user_id, surface, route, recommender,"
                    " first_position, item_rows, sources, scores, promoted)"
                    " values (:id, :at, 'ann', 'feed', 'few', 'blend', 1, '{}', '{}', '{}', '{}')"
                ),
                {"id": f"r{n}", "at": at},
            )
            statement = "insert into audit_log (at, actor, action, subject) values (:at, 'a', 'b', 'c')"
            db.execute(text(statement), {"at": at})
    batches: list[float] = []
    counted = {table: telemetry.PRUNED_ROWS.labels(table)._value.get() for table in ("impressions", "on_screen")}
    settings = Settings(impressions_days=90, audit_days=90)
    gone = prune(engine, settings, pause=batches.append)
    # Of the 90th day only what is from before its midnight; which day that is may have changed since NOW.
    with engine.connect() as db:
        midnight = db.execute(text("select kept_from from retention_floors where what = 'on_screen'")).scalar_one()
    assert (midnight.hour, midnight.minute, midnight.second, midnight.microsecond) == (0, 0, 0, 0)
    old = sum(NOW - timedelta(days=86 + n) < midnight for n in range(10))
    assert old in (5, 6)
    assert gone == {"impressions": old, "exposures": 0, "on_screen": old, "audit_log": old}
    assert len(batches) >= 3
    left = 10 - old
    assert [rows(engine, table) for table in ("impressions", "on_screen", "event_ids", "audit_log")] == [left] * 4
    for table, value in counted.items():
        assert telemetry.PRUNED_ROWS.labels(table)._value.get() == value + old
    assert prune(engine, Settings(impressions_days=0)) == Counter()


def test_exposures_go_when_their_experiment_has_been_over_for_long(engine: Engine) -> None:
    run = (
        "insert into experiments (key, run, seed, definition, status, coverage, stopped_at)"
        " values ('x', :run, 's', '{}', :status, 1, :stopped_at)"
    )
    exposure = (
        "insert into exposures (experiment, run, user_id, variant, exposed_at, route, surface, request_id, worker)"
        " values ('x', :run, 'ann', 'control', :at, 'few', 'feed', 'r', 'w')"
    )
    long_ago = NOW - 200 * DAY
    with engine.begin() as db:
        for number, stopped_at in enumerate([long_ago, NOW - DAY, None]):
            status = "running" if stopped_at is None else "stopped"
            db.execute(text(run), {"run": number, "status": status, "stopped_at": stopped_at})
            db.execute(text(exposure), {"run": number, "at": long_ago})
    assert prune(engine, Settings()) == {"impressions": 0, "exposures": 1, "on_screen": 0}
    with engine.connect() as db:
        assert db.execute(text("select run from exposures order by run")).scalars().all() == [1, 2]


def test_a_process_that_slept_while_events_came_and_went_counts_them_all(
    engine: Engine, ingest: Ingest, follower: LiveFollower, settings: Settings
) -> None:
    until(lambda: follower._is_projector)
    sleeper = LiveFollower(engine, settings.model_copy(update={"refresh_seconds": 3_600.0}))
    try:
        assert sleeper.caught_up(60)
        old = [Event(f"e{n}", "ann", "a", "click", None, NOW - timedelta(days=80 + n)) for n in range(5)]
        ingest.submit_blocking(old)
        stored(engine, follower)
        assert (prune(engine, settings) or Counter[str]())["interactions"] == 4
        assert not sleeper.state.totals().any()
        with sleeper._wake:
            sleeper._refresh_seconds = 0.05
            sleeper._poked = True
            sleeper._wake.notify()
        assert caught_up(engine, sleeper).totals().tolist()[:1] == [7.5]
    finally:
        sleeper.close()


def test_one_process_prunes_at_a_time(engine: Engine, settings: Settings) -> None:
    with engine.connect() as db:
        db.execute(text("select pg_advisory_lock(:lock)"), {"lock": PRUNER_LOCK})
        assert prune(engine, settings) is None
        db.execute(text("select pg_advisory_unlock(:lock)"), {"lock": PRUNER_LOCK})
    assert prune(engine, settings) is not None


def test_events_that_the_live_signals_have_not_stored_stay(engine: Engine, ingest: Ingest, settings: Settings) -> None:
    ingest.submit_blocking([Event(f"e{n}", "ann", "a", "view", None, NOW - timedelta(days=80 + n)) for n in range(5)])
    assert prune(engine, settings) == {"impressions": 0, "exposures": 0, "on_screen": 0, "interactions": 0}
    assert rows(engine, "interactions") == 5
    opened = LiveFollower(engine, settings)
    stored(engine, opened)
    opened.close()
    gone = prune(engine, settings)
    assert gone is not None
    assert gone["interactions"] == 4


def test_a_writer_that_does_not_end_is_not_waited_for(
    engine: Engine, ingest: Ingest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be storing what is older than the floor that would be; what it writes meanwhile goes the next time."""
    monkeypatch.setattr(retention, "TRIES", 2)
    ingest.submit_blocking([Event("e", "ann", "a", "impression", None, NOW - 100 * DAY)])
    with engine.begin() as slow:
        slow.execute(text("select pg_advisory_xact_lock_shared(:lock)"), {"lock": ERASURE_LOCK})
        assert prune(engine, settings) == {"impressions": 0, "exposures": 0, "on_screen": 0, "interactions": 0}
        assert ingest.submit_blocking([Event("f", "ann", "a", "impression", None, NOW - 100 * DAY)]).accepted == 1
    assert prune(engine, settings) == {"impressions": 0, "exposures": 0, "on_screen": 2, "interactions": 0}


def test_writers_and_erasures_go_on_beside_it(
    engine: Engine, ingest: Ingest, follower: LiveFollower, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EVENTS_PER_BATCH", 1)
    ingest.submit_blocking(a_past(3, users=BUSY, days=200, per_user=60))
    stored(engine, follower)
    over = threading.Event()

    def write() -> None:
        for seed in range(100, 10_000):
            if over.is_set():
                return
            ingest.submit_blocking(a_past(seed, users=BUSY, days=150, per_user=1))

    writer = threading.Thread(target=write)
    writer.start()
    erased = iter(BUSY[:4])

    def between(_: float) -> None:
        if (user := next(erased, None)) is not None:
            erase_user(engine, ingest.views, user)

    try:
        # A first round may find old events that the live signals have not stored yet.
        until(lambda: (prune(engine, settings, pause=between) or Counter[str]())["interactions"] > 100)
    finally:
        over.set()
        writer.join()
    assert next(erased, None) is None
    caught_up(engine, follower)
    stored(engine, follower)
    is_a_recount(engine, follower.state, settings)
    with engine.connect() as db:
        orphans = "select count(*) from event_ids where event_id not in (select event_id from interactions)"
        assert db.execute(text(orphans)).scalar_one() == 0


def test_a_checkpoint_has_read_also_what_changes_nothing(
    engine: Engine, ingest: Ingest, follower: LiveFollower
) -> None:
    """Pruning waits for the checkpoint: a dislike, which no live signal counts, must not hold it up."""
    for nth, kind in enumerate(("click", "dislike")):
        ingest.submit_blocking([Event(f"e{nth}", "ann", "a", kind, None, NOW)])
        stored(engine, follower)


def test_the_service_does_it_by_itself(
    engine: Engine, ingest: Ingest, cache: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="app.retention")
    ingest.submit_blocking([Event("e", "ann", "a", "impression", None, NOW - 100 * DAY)])
    keeper = RetentionKeeper(engine, cache, Settings(prune_seconds=0.1))
    try:
        until(lambda: rows(engine, "on_screen") == 0)
        until(lambda: "pruned: 1 of on_screen" in caplog.text)
        assert telemetry.PRUNED_AT._value.get() > 0
    finally:
        keeper.close()
