"""Two threads of one process write; nobody can tell, but that many events need not wait for a group held up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis
from sqlalchemy import Engine, text

from app.feedback import event_writer
from app.feedback.event_writer import EventWriter
from app.feedback.events import Event, Receipt
from app.feedback.ingest import SECOND_FROM, Ingest
from app.settings import Settings
from app.storage.database import open_engine
from tests.app.feedback.examples import an_event
from tests.patience import until

KINDS = ("like", "unlike", "dislike", "view")


@contextmanager
def in_use(engine: Engine, user_id: str) -> Iterator[None]:
    """Whoever decides on this user's likes waits."""
    with engine.begin() as db:
        db.execute(text("SELECT FROM users WHERE user_id = :user FOR UPDATE"), {"user": user_id})
        yield


def is_held_up(engine: Engine) -> bool:
    with engine.connect() as db:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(db.execute(text(waiting)).scalar_one())


def has_stored(writer: EventWriter) -> bool:
    return writer._db is not None and "segue_store" in writer._db.info


@pytest.fixture
def patient(postgres_url: str, cache: redis.Redis) -> Iterator[Ingest]:
    """It waits for a lock for as long as a slow machine may take to let it go."""
    engine = open_engine(postgres_url, pool=3, statement_timeout_seconds=120)
    ingest = Ingest(engine, cache, Settings(database_timeout_seconds=120), settle_seconds=0)
    yield ingest
    ingest.close()
    engine.dispose()


@contextmanager
def held_up(ingest: Ingest, engine: Engine) -> Iterator[tuple[ThreadPoolExecutor, Future[Receipt]]]:
    """Threads to send more with, while the first writer waits with a like of ann's."""
    ingest.submit_blocking([an_event("ann"), an_event("bob")])
    with ThreadPoolExecutor() as pool, in_use(engine, "ann"):
        sent = pool.submit(ingest.submit_blocking, [an_event("ann", kind="like")])
        until(lambda: is_held_up(engine))
        yield pool, sent


def test_many_events_do_not_wait_for_a_group_that_is_held_up(patient: Ingest, engine: Engine) -> None:
    with held_up(patient, engine) as (pool, first):
        some = pool.submit(patient.submit_blocking, [an_event("bob") for _ in range(SECOND_FROM - 1)])
        until(lambda: patient.queued_events == SECOND_FROM - 1)
        assert not has_stored(patient.second)
        one_more = pool.submit(patient.submit_blocking, [an_event("bob")])
        assert some.result(60).accepted == SECOND_FROM - 1
        assert one_more.result(60).accepted == 1
        assert not first.done()
    assert first.result(60).accepted == 1
    assert has_stored(patient.second)


def test_without_a_connection_of_its_own_the_second_takes_nothing(patient: Ingest, engine: Engine) -> None:
    with held_up(patient, engine) as (pool, first):
        others = [patient.first._engine.connect() for _ in range(2)]
        many = pool.submit(patient.submit_blocking, [an_event("bob") for _ in range(SECOND_FROM)])
        until(lambda: patient.queued_events == SECOND_FROM)
    assert first.result(60).accepted == 1
    assert many.result(60).accepted == SECOND_FROM
    assert not has_stored(patient.second)
    for other in others:
        other.close()


def test_what_is_left_at_the_end_is_the_firsts(patient: Ingest, engine: Engine) -> None:
    with held_up(patient, engine) as (pool, first):
        few = pool.submit(patient.submit_blocking, [an_event("bob")])
        until(lambda: patient.queued_events == 1)
        closing = pool.submit(patient.close)
        until(lambda: not patient._threads[1].is_alive())
    closing.result(60)
    assert first.result(60).accepted == few.result(60).accepted == 1
    assert not has_stored(patient.second)


def test_few_events_are_one_writers_business(ingest: Ingest) -> None:
    with ThreadPoolExecutor(8) as pool:
        for sent in [pool.submit(ingest.submit_blocking, [an_event(f"u{n}")]) for n in range(SECOND_FROM)]:
            assert sent.result(60).accepted == 1
    assert not has_stored(ingest.second)


@pytest.mark.parametrize("seed", range(3))
def test_both_at_once_store_each_id_once_and_agree_on_who_likes_what(ingest: Ingest, engine: Engine, seed: int) -> None:
    draw = random.Random(seed)
    events = [some_event(draw, n) for n in range(3_000)]
    # Every event twice, in requests of their own.
    requests = [chosen[at : at + 150] for chosen in (events, draw.sample(events, 3_000)) for at in range(0, 3_000, 150)]

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(ingest.submit_blocking, requests))

    assert sum(receipt.accepted for receipt in receipts) == sum(receipt.duplicates for receipt in receipts) == 3_000
    assert has_stored(ingest.second)
    with engine.connect() as db:
        assert db.execute(text("SELECT count(*), count(DISTINCT event_id) FROM interactions")).one() == (3_000, 3_000)
        liked = set(db.execute(text("SELECT user_row, item_row FROM likes")).all())
        decided = db.execute(
            text(
                "SELECT DISTINCT ON (user_row, item_row) user_row, item_row, kind FROM interactions"
                " WHERE kind <> 'view' ORDER BY user_row, item_row, least(\"timestamp\", received_at) DESC, seq DESC"
            )
        ).all()
        assert liked == {(user, item) for user, item, kind in decided if kind == "like"} != set()


def test_they_never_wait_for_one_another_in_a_circle(
    ingest: Ingest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both bring users and items that are new, and likes of those who are not: a deadlock fails here."""
    monkeypatch.setattr(event_writer, "TRY_AGAIN", frozenset())

    def batch(number: int) -> list[Event]:
        """A few users and items are new with each."""
        draw = random.Random(number)
        users, items = (range(each * number, each * number + 40) for each in (5, 1))
        return [
            an_event(f"u{draw.choice(users)}", f"i{draw.choice(items)}", draw.choice(("like", "view")), minute=None)
            for _ in range(100)
        ]

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(ingest.submit_blocking, map(batch, range(150))))
    assert sum(receipt.accepted for receipt in receipts) == 15_000
    assert has_stored(ingest.second)


def some_event(draw: random.Random, number: int) -> Event:
    """Of few users on few items, and as of now: what is decided last is so by when it is stored."""
    user_id, item_id = f"u{draw.randrange(5)}", f"i{draw.randrange(20)}"
    return an_event(user_id, item_id, draw.choice(KINDS), minute=None, event_id=f"e{number}")
