"""A worker's live signals are those of the events that are committed, whatever happens between."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from app import telemetry
from app.feedback.ingest import Ingest
from app.live import log
from app.live.check import differences
from app.live.follower import LiveFollower
from app.live.log import recount
from app.settings import Settings
from app.storage.database import open_engine
from app.storage.new_life import begin_new_life
from models.live.state import LiveState
from tests.app.live.conftest import Follow, an_event, row_of, user_row_of
from tests.patience import until
from tests.transactions import await_all_before

Erase = Callable[[str], object]
DAY = timedelta(days=1)


def rests(follower: LiveFollower) -> bool:
    """Whether it has looked, and waits for the next time or for a poke."""
    with follower._wake:
        return not follower._poked and bool(follower._wake._waiters)  # type: ignore[attr-defined]


def poke(follower: LiveFollower) -> None:
    with follower._wake:
        follower._poked = True
        follower._wake.notify()


def caught_up(engine: Engine, follower: LiveFollower) -> LiveState:
    """The follower's state once it holds all that is committed now, equal to a recount.

    Up to xmax, for xmin may lie before it: transactions of other databases hold it back.
    """
    with engine.connect() as db:
        horizon = db.execute(text("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")).scalar_one()
    until(lambda: follower.watermark >= horizon)
    recounted, _ = recount(engine, Settings().feedback_weights)
    assert differences(follower.state, recounted) == []
    return follower.state


def test_what_was_there_and_what_comes_is_counted(engine: Engine, ingest: Ingest, follow: Follow) -> None:
    ingest.submit_blocking([an_event("ann", "a", ago=2 * DAY), an_event("bob", "a"), an_event("bob", "b", "like")])
    follower = follow()
    assert caught_up(engine, follower).totals().tolist() == [3.0, 2.0]
    ingest.submit_blocking([an_event("ann", "b"), an_event("ann", "c")])
    state = caught_up(engine, follower)
    assert state.totals().tolist() == [3.0, 3.5, 1.5]
    assert state.trail(user_row_of(engine, "ann")).tolist() == [1, 2, 0]
    items, shares = state.covisited(row_of(engine, "a"))
    assert (items.tolist(), shares.tolist()) == ([1, 2], [1.0, 0.5])


def test_a_day_counts_once_late_events_and_stronger_ones_included(
    engine: Engine, ingest: Ingest, follow: Follow
) -> None:
    follower = follow()
    midnight = an_event("x", "x").timestamp
    assert midnight is not None
    noon = timedelta(hours=midnight.hour + 12, minutes=midnight.minute, seconds=midnight.second)
    for event, total in (
        (an_event("ann", "a", "click", ago=noon), 1.5),
        (an_event("ann", "a", "purchase", ago=noon - timedelta(hours=1)), 2.5),
        (an_event("ann", "a", "view", ago=noon + timedelta(hours=2)), 2.5),
        (an_event("ann", "a", "view", ago=noon + DAY), 3.8),
        (an_event("ann", "a", "unlike", ago=noon - timedelta(hours=2)), 3.8),
        (an_event("ann", "a", "impression", ago=noon - timedelta(hours=3)), 3.8),
        (an_event("ann", "a", "rating", ago=noon + 2 * DAY, value=0.0), 3.8),
    ):
        ingest.submit_blocking([event])
        assert caught_up(engine, follower).totals().tolist() == pytest.approx([total])


def test_a_clock_that_runs_ahead_is_overruled_by_the_receipt(engine: Engine, ingest: Ingest, follow: Follow) -> None:
    follower = follow()
    ahead = datetime.now(UTC) + timedelta(minutes=4)
    ingest.submit_blocking([an_event("ann", "a")._replace(timestamp=ahead)])
    state = caught_up(engine, follower)
    with engine.connect() as db:
        received = db.execute(text("select extract(epoch from received_at)::float8 from interactions")).scalar_one()
    assert state.newest == pytest.approx(received, abs=1e-3)


def test_erasing_a_user_takes_everything_back(engine: Engine, ingest: Ingest, follow: Follow, erase: Erase) -> None:
    ingest.submit_blocking([an_event("ann", item) for item in "ab"] + [an_event("bob", "b", ago=DAY)])
    follower, ann = follow(), user_row_of(engine, "ann")
    assert erase("ann")["interactions"] == 2  # type: ignore[index]
    state = caught_up(engine, follower)
    until(lambda: not len(state.trail(ann)))
    assert caught_up(engine, follower).totals().tolist() == [0.0, 1.5]
    assert state.visitors(row_of(engine, "b")).tolist() == [user_row_of(engine, "bob")]
    ingest.submit_blocking([an_event("cyd", "a")])
    assert caught_up(engine, follower).totals().tolist() == [1.5, 1.5]


def test_a_full_list_that_loses_a_visitor_is_filled_from_the_log(
    engine: Engine, ingest: Ingest, follow: Follow, erase: Erase
) -> None:
    ingest.submit_blocking([an_event(f"u{n}", "a", ago=timedelta(minutes=n)) for n in range(103)])
    follower = follow()
    item = row_of(engine, "a")
    for user in ("u7", "u50", "u102"):
        erase(user)
        state = caught_up(engine, follower)
        assert len(state.visitors(item)) == 100
    assert user_row_of(engine, "u101") in state.visitors(item)


def test_what_commits_late_is_counted_though_its_number_is_lower(
    engine: Engine, ingest: Ingest, follow: Follow
) -> None:
    ingest.submit_blocking([an_event("ann", "a")])
    follower = follow()
    insert = text(
        "insert into interactions (event_id, user_row, item_row, kind, timestamp) values (:id, 0, 0, 'click', :at)"
    )
    early = an_event("x", "x", ago=3 * DAY).timestamp
    with engine.connect() as slow:
        with slow.begin():
            slow.execute(insert, {"id": "slow", "at": early})
            receipt = ingest.submit_blocking([an_event("bob", "a")])
            time.sleep(0.2)
            # Its own is committed, but below it something may still come.
            assert not follower.counts(int(receipt.watermark))
        until(lambda: follower.counts(int(receipt.watermark)))
    assert caught_up(engine, follower).totals().tolist() == [4.5]


def test_waiting_for_a_watermark_ends_when_it_is_counted(engine: Engine, ingest: Ingest, follow: Follow) -> None:
    follower = follow()

    async def waited() -> list[bool]:
        answers = []
        for n in range(20):
            receipt = await ingest.submit([an_event("ann", f"i{n}")])
            answers.append(await follower.wait_for(int(receipt.watermark), 60))
            assert follower.state.totals()[n] == 1.5
        return answers

    assert all(asyncio.run(waited()))


def test_waiting_for_what_never_comes_ends_in_time(engine: Engine, follow: Follow) -> None:
    follower = follow()
    assert not asyncio.run(follower.wait_for(2**60, 0.1))
    assert asyncio.run(follower.wait_for(0, 0.1))


def test_a_poke_is_heard_where_somebody_waited_of_late(
    engine: Engine, ingest: Ingest, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.live.follower.EAGER_SECONDS", 3_600.0)
    follower = follow()
    follower._refresh_seconds = 3_600
    asyncio.run(follower.wait_for(2**60, 0.01))
    until(lambda: rests(follower))
    receipt = ingest.submit_blocking([an_event("ann", "a")])

    def heard() -> bool:
        follower.poke()  # again and again, for an older transaction may be open
        return follower.counts(int(receipt.watermark))

    until(heard)


def test_it_survives_that_postgres_goes_away(engine: Engine, ingest: Ingest, follow: Follow, postgres_url: str) -> None:
    follower = follow()
    ingest.submit_blocking([an_event("ann", "a")])
    caught_up(engine, follower)
    with engine.connect() as db:
        others = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        db.execute(text(f"{others} and pid <> pg_backend_pid()"))
    engine.dispose()
    ingest.submit_blocking([an_event("bob", "a")])
    assert caught_up(engine, follower).totals().tolist() == [3.0]


def test_without_postgres_it_says_how_far_behind_it_is_and_ends_when_told_to(settings: Settings) -> None:
    errors = telemetry.DEPENDENCY_ERRORS.labels("postgres")
    before = errors._value.get()
    engine = open_engine("postgresql://segue@127.0.0.1:1/nowhere")
    follower = LiveFollower(engine, settings)
    assert not follower.caught_up(0.3)
    assert follower.lag_seconds >= 0.3
    until(lambda: errors._value.get() > before)
    follower.close()
    assert not follower._thread.is_alive()
    engine.dispose()


class Counted:
    """How many each thread counted: a service that other tests use follows its own database in this process."""

    def __init__(self) -> None:
        self.of = Counter[threading.Thread]()

    def inc(self, amount: float) -> None:
        self.of[threading.current_thread()] += int(amount)


def test_the_lag_is_small_while_all_is_well_and_what_is_folded_is_counted(
    engine: Engine, ingest: Ingest, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(telemetry, "LIVE_EVENTS", counted)
    follower = follow()
    ingest.submit_blocking([an_event("ann", "a"), an_event("ann", "b", "view"), an_event("ann", "c", "dislike")])
    caught_up(engine, follower)
    assert counted.of[follower._thread] == 2
    assert 0 <= follower.lag_seconds < 60


def test_a_restart_goes_on_from_the_checkpoint(
    engine: Engine, ingest: Ingest, follow: Follow, erase: Erase, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest.submit_blocking([an_event(f"u{n % 7}", f"i{n % 5}", ago=n * DAY / 3) for n in range(60)])
    first = follow()
    first.close()
    erase("u3")
    ingest.submit_blocking([an_event("u9", "i1"), an_event("u1", "i9", ago=DAY)])

    def refused(*_: object, **__: object) -> Any:
        raise AssertionError("it counts everything anew")

    monkeypatch.setattr(log, "counted_anew", refused)
    second = follow()
    monkeypatch.undo()
    caught_up(engine, second)
    with engine.connect() as db:
        assert db.execute(text("select count(*) from live_chunks")).scalar_one() == 2


def test_other_weights_are_counted_anew(engine: Engine, ingest: Ingest, follow: Follow, settings: Settings) -> None:
    ingest.submit_blocking([an_event("ann", "a")])
    follow().close()
    other = LiveFollower(engine, settings.model_copy(update={"feedback_weights": {"click": 3.0}}))
    assert other.caught_up(60)
    assert other.state.totals().tolist() == [4.0]
    other.close()


def test_only_one_of_several_stores_and_another_takes_over(engine: Engine, ingest: Ingest, follow: Follow) -> None:
    one, two = follow(), follow()
    until(lambda: one._is_projector or two._is_projector)
    first, second = (one, two) if one._is_projector else (two, one)
    for n in range(10):
        ingest.submit_blocking([an_event("ann", f"i{n}", ago=n * DAY)])
    caught_up(engine, first)
    assert not second._is_projector
    first.close()
    until(lambda: second._is_projector)
    ingest.submit_blocking([an_event("bob", "i3")])
    caught_up(engine, second)
    second.close()
    caught_up(engine, follow())


def test_retractions_are_pruned_and_a_follower_that_slept_starts_from_the_checkpoint(
    engine: Engine, ingest: Ingest, follow: Follow, erase: Erase
) -> None:
    ingest.submit_blocking([an_event(user, item) for user in ("ann", "bob") for item in "abc"])
    projector = follow()
    until(lambda: projector._is_projector)
    sleeper = follow()
    sleeper._refresh_seconds = 3_600
    poke(sleeper)
    until(lambda: rests(sleeper))
    erase("ann")
    caught_up(engine, projector)
    with engine.begin() as db:
        db.execute(text("update retractions set retracted_at = now() - interval '61 minutes'"))
    ingest.submit_blocking([an_event("cyd", "c")])

    def pruned() -> bool:
        with engine.connect() as db:
            return not db.execute(text("select count(*) from retractions")).scalar_one()

    until(pruned)
    assert sleeper.state.totals()[0] == 3.0
    sleeper._refresh_seconds = 0.05
    poke(sleeper)
    caught_up(engine, sleeper)
    assert sleeper.state.totals().tolist() == [1.5, 1.5, 3.0]


@pytest.mark.parametrize("tidy", [True, False])
def test_a_database_restored_from_a_dump_counts_once_its_numbers_are_given_anew(
    engine: Engine, ingest: Ingest, follow: Follow, tidy: bool
) -> None:
    """`segue restored` does it; the other cluster's transactions lie in this one's future.

    tidy: before the service is started, or only once somebody remembers
    """
    ingest.submit_blocking([an_event("ann", "a"), an_event("bob", "a")])
    follow().close()
    with engine.begin() as db:
        db.execute(text("update interactions set xid = '900000000000'"))
        db.execute(text("update live_checkpoint set watermark = '900000000001', retractions_from = '900000000001'"))
    if not tidy:
        follower = follow()
        assert follower.state.totals().tolist() == []
        ingest.submit_blocking([an_event("ann", "b", ago=DAY)])
    with engine.begin() as db:
        assert begin_new_life(db, actor="tests")
    with engine.begin() as db:
        assert not begin_new_life(db, actor="tests"), "there is nothing left to renumber"
    if tidy:
        follower = follow()
        ingest.submit_blocking([an_event("ann", "b", ago=DAY)])
    assert caught_up(engine, follower).totals().tolist() == [3.0, 1.5]


@pytest.mark.parametrize("rows", [1, 3])
def test_many_events_are_taken_in_steps(
    engine: Engine, ingest: Ingest, follow: Follow, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    follower = follow()
    look, marks = log.look, list[int]()

    def looked(*arguments: Any) -> log.Horizon:
        found = look(*arguments, rows=rows)
        marks.append(found.until)
        return found

    with engine.connect() as slow, slow.begin():
        slow.execute(text("select pg_current_xact_id()"))
        for n in range(10):
            ingest.submit_blocking([an_event("ann", f"i{n}"), an_event("bob", f"i{n % 3}", ago=n * DAY / 5)])
        monkeypatch.setattr(log, "look", looked)
    caught_up(engine, follower)
    assert len(set(marks)) > 5


def test_a_recount_of_many_blocks_is_that_of_one(
    engine: Engine, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1)
    for _ in range(4):
        ingest.submit_blocking(
            [an_event(f"u{draw.integers(40)}", f"i{draw.integers(9)}", ago=DAY * draw.random() * 9) for _ in range(500)]
        )
    whole, mark = recount(engine, Settings().feedback_weights)
    monkeypatch.setattr(log, "ROWS_PER_BLOCK", 100)
    monkeypatch.setattr("app.storage.copy_out._BLOCK_BYTES", 2_000)
    assert differences(recount(engine, Settings().feedback_weights, until=mark)[0], whole) == []


def test_differences_are_found(engine: Engine, ingest: Ingest) -> None:
    ingest.submit_blocking([an_event("ann", "a"), an_event("bob", "b")])
    await_all_before(engine)
    state, _ = recount(engine, Settings().feedback_weights)
    ingest.submit_blocking([an_event("ann", "b")])
    await_all_before(engine)
    recounted, _ = recount(engine, Settings().feedback_weights)
    found = " ".join(differences(state, recounted))
    for what in ("count of half-life 3600 s", "total", "visitors", "user row 0: trail"):
        assert what in found
    assert "item row 0" not in found
