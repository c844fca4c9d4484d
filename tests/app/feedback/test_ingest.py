"""Events become durable once each, in groups, and one bad request does not spoil the others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import pytest
import redis
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.engine import make_url

from app.errors import Invalid, Unavailable
from app.feedback import event_writer
from app.feedback import ingest as ingest_module
from app.feedback.dirty_marks import ERASURE_LOCK
from app.feedback.events import Event, Receipt
from app.feedback.ingest import Ingest
from app.settings import Settings
from app.storage.database import open_engine
from tests.app.feedback.examples import an_event
from tests.patience import until


def scalar(engine: Engine, statement: str, **parameters: object) -> Any:
    with engine.connect() as db:
        return db.execute(text(statement), parameters).scalar_one()


def stored_ids(engine: Engine) -> list[str]:
    with engine.connect() as db:
        return list(db.execute(text("SELECT event_id FROM interactions ORDER BY seq")).scalars())


@contextmanager
def commits(engine: Engine) -> Iterator[list[None]]:
    """Counts the transactions committed on the engine."""
    seen: list[None] = []
    listener = lambda _: seen.append(None)  # noqa: E731
    event.listen(engine, "commit", listener)
    yield seen
    event.remove(engine, "commit", listener)


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is sent to Postgres."""
    sent: list[str] = []
    listener = lambda *arguments: sent.append(arguments[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", listener)
    yield sent
    event.remove(engine, "before_cursor_execute", listener)


@contextmanager
def occupied(engine: Engine) -> Iterator[None]:
    """Keeps every group waiting at its beginning, so that requests queue up behind it."""
    with engine.begin() as db:
        db.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ERASURE_LOCK})
        yield


def is_held_up(engine: Engine) -> bool:
    """Whether the writer has taken a group, and waits at its beginning."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return bool(scalar(engine, waiting))


class TestOneRequest:
    def test_stores_what_the_event_says(self, ingest: Ingest, engine: Engine) -> None:
        sent = Event("e1", "ann", "dune", "rating", 4.5, an_event(minute=3).timestamp, "s1", "r1")
        receipt = ingest.submit_blocking([sent])
        assert (receipt.accepted, receipt.duplicates) == (1, 0)
        with engine.connect() as db:
            row = db.execute(
                text(
                    "SELECT user_id, item_id, interactions.* FROM interactions"
                    " JOIN users ON users.row = user_row JOIN items ON items.row = item_row"
                )
            ).one()
        assert (row.event_id, row.user_id, row.item_id, row.kind, row.value) == ("e1", "ann", "dune", "rating", 4.5)
        assert (row.timestamp, row.session_id, row.request_id) == (sent.timestamp, "s1", "r1")

    def test_is_on_disk_before_it_is_answered_whatever_the_session_prefers(
        self, cache: redis.Redis, engine: Engine
    ) -> None:
        in_force: list[str] = []

        def ask(db: Connection) -> None:
            in_force.append(db.exec_driver_sql("SHOW synchronous_commit").scalar_one())

        event.listen(engine, "connect", lambda raw, _: raw.cursor().execute("SET synchronous_commit = off"))
        event.listen(engine, "commit", ask)
        ingest = Ingest(engine, cache, Settings(), settle_seconds=0)
        ingest.submit_blocking([an_event()])
        ingest.close()
        assert "on" in in_force

    def test_the_same_event_twice_is_stored_once(self, ingest: Ingest, engine: Engine) -> None:
        twice = [an_event(event_id="e1"), an_event(event_id="e1"), an_event(event_id="e2")]
        first, second = ingest.submit_blocking(twice), ingest.submit_blocking(twice)
        assert (first.accepted, first.duplicates) == (2, 1)
        assert (second.accepted, second.duplicates) == (0, 3)
        assert stored_ids(engine) == ["e1", "e2"]

    def test_keeps_the_order_of_the_request(self, ingest: Ingest, engine: Engine) -> None:
        ids = ["z", "a", "m", "b"]
        ingest.submit_blocking([an_event(event_id=event_id) for event_id in ids])
        assert stored_ids(engine) == ids

    def test_its_watermark_is_the_transaction_that_later_snapshots_include(
        self, ingest: Ingest, engine: Engine
    ) -> None:
        receipt = ingest.submit_blocking([an_event()])
        assert receipt.watermark == scalar(engine, "SELECT xid::text FROM interactions")
        included = "SELECT pg_visible_in_snapshot(CAST(:watermark AS xid8), pg_current_snapshot())"
        assert scalar(engine, included, watermark=receipt.watermark)

    def test_without_a_time_it_happened_when_the_database_received_it(self, ingest: Ingest, engine: Engine) -> None:
        ingest.submit_blocking([an_event(minute=None)])
        assert scalar(engine, "SELECT timestamp = received_at FROM interactions")

    def test_an_event_on_a_deleted_item_is_stored_and_the_item_stays_deleted(
        self, ingest: Ingest, engine: Engine
    ) -> None:
        with engine.begin() as db:
            db.execute(text("INSERT INTO items (item_id, deleted_at) VALUES ('dune', now())"))
        assert ingest.submit_blocking([an_event(item_id="dune")]).accepted == 1
        assert scalar(engine, "SELECT count(*) FROM interactions") == 1
        assert scalar(engine, "SELECT deleted_at IS NOT NULL FROM items")


class TestManyRequests:
    def test_64_tasks_share_commits_and_each_gets_its_own_receipt(self, ingest: Ingest, engine: Engine) -> None:
        async def one_task(number: int) -> list[Receipt]:
            return [
                await ingest.submit([an_event(f"u{number}", f"i{n}"), an_event(event_id=f"shared-{n}")])
                for n in range(5)
            ]

        async def all_tasks() -> list[list[Receipt]]:
            return await asyncio.gather(*(one_task(number) for number in range(64)))

        with commits(engine) as seen:
            receipts = [receipt for task in asyncio.run(all_tasks()) for receipt in task]
        assert sum(receipt.accepted for receipt in receipts) == 64 * 5 + 5
        assert all(receipt.accepted + receipt.duplicates == 2 for receipt in receipts)
        assert len(set(stored_ids(engine))) == scalar(engine, "SELECT count(*) FROM interactions") == 64 * 5 + 5
        assert len(seen) < 320 / 4

    def test_a_group_of_known_ids_is_two_statements_whatever_is_in_it(self, ingest: Ingest, engine: Engine) -> None:
        """One opens the transaction, one stores. The third, after the commit, goes past SQLAlchemy."""
        kinds = ("like", "view", "impression", "dislike")
        sent = [an_event(f"u{n % 5}", f"i{n % 7}", kinds[n % 4], event_id=f"e{n}") for n in range(40)]
        ingest.submit_blocking(sent)
        with statements(engine) as seen:
            again = ingest.submit_blocking([*sent, *(an_event("u1", "i1", kind) for kind in kinds)])
        assert (again.accepted, again.duplicates) == (4, 40)
        assert len(seen) == 2

    def test_writers_with_the_same_ids_neither_deadlock_nor_store_twice(
        self, engine: Engine, cache: redis.Redis, postgres_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(event_writer, "TRY_AGAIN", frozenset())  # a deadlock is a failure here
        engines = [open_engine(postgres_url) for _ in range(4)]
        writers = [Ingest(each, cache, Settings(), settle_seconds=0) for each in engines]
        # Known users and items, and no likes: what is left to lock is the ids of the events.
        writers[0].submit_blocking([an_event(event_id="first")])

        def send(seed: int, writer: Ingest) -> int:
            events = [an_event(event_id=f"e{n}") for n in range(1_000)]
            random.Random(seed).shuffle(events)
            return writer.submit_blocking(events).accepted

        with ThreadPoolExecutor(4) as pool:
            with occupied(engine):
                answers = pool.map(send, range(4), writers)
                time.sleep(0.3)
            assert sum(answers) == 1_000
        for writer, each in zip(writers, engines, strict=True):
            writer.close()
            each.dispose()
        assert len(stored_ids(engine)) == len(set(stored_ids(engine))) == 1_001

    def test_the_rows_of_new_users_leave_no_gaps(self, ingest: Ingest, engine: Engine) -> None:
        for n in range(20):
            ingest.submit_blocking([an_event(f"u{n // 2}", f"i{n // 2}")])
        assert scalar(engine, "SELECT max(row) FROM users") == 9
        assert scalar(engine, "SELECT max(row) FROM items") == 9

    def test_a_poisoned_request_fails_alone(self, ingest: Ingest, engine: Engine) -> None:
        async def send(*events: Event) -> Receipt | Exception:
            try:
                return await ingest.submit(events)
            except Invalid as error:
                return error

        async def together() -> list[Receipt | Exception]:
            with ThreadPoolExecutor() as pool:
                release = threading.Event()
                held = pool.submit(hold, release)
                await asyncio.sleep(0.1)
                tasks = [
                    asyncio.create_task(send(sent))
                    for sent in (an_event("ann"), an_event("b\0b"), an_event("c\ud800"), an_event("dan"))
                ]
                await asyncio.sleep(0.1)
                release.set()
                held.result()
                return await asyncio.gather(*tasks)

        def hold(release: threading.Event) -> None:
            with occupied(engine):
                release.wait(5)

        first, second, third, last = asyncio.run(together())
        assert isinstance(first, Receipt)
        assert isinstance(last, Receipt)
        assert isinstance(second, Invalid)
        assert isinstance(third, Invalid)
        assert scalar(engine, "SELECT count(*) FROM interactions") == 2

    def test_a_full_queue_is_unavailable_and_stores_nothing(self, engine: Engine, cache: redis.Redis) -> None:
        ingest = Ingest(engine, cache, Settings(ingest_queue=10), settle_seconds=0)
        with ThreadPoolExecutor() as pool:
            with occupied(engine):
                under_way = pool.submit(ingest.submit_blocking, [an_event(event_id="first")])
                until(lambda: is_held_up(engine))
                queued = pool.submit(ingest.submit_blocking, [an_event() for _ in range(8)])
                until(lambda: ingest.queued_events == 8)
                with pytest.raises(Unavailable, match="8 events are waiting") as refused:
                    ingest.submit_blocking([an_event(event_id=f"late-{n}") for n in range(3)])
            assert refused.value.retry_after >= 1
            assert under_way.result().accepted == 1
            assert queued.result().accepted == 8
        ingest.close()
        assert len(stored_ids(engine)) == 9

    def test_a_request_larger_than_the_queue_is_taken_when_the_queue_is_empty(
        self, engine: Engine, cache: redis.Redis
    ) -> None:
        ingest = Ingest(engine, cache, Settings(ingest_queue=10), settle_seconds=0)
        assert ingest.submit_blocking([an_event() for _ in range(30)]).accepted == 30
        ingest.close()

    def test_closing_writes_what_is_queued_and_takes_no_more(self, engine: Engine, cache: redis.Redis) -> None:
        ingest = Ingest(engine, cache, Settings(), settle_seconds=0)
        with ThreadPoolExecutor() as pool:
            with occupied(engine):
                under_way = pool.submit(ingest.submit_blocking, [an_event()])
                until(lambda: is_held_up(engine))
                queued = [pool.submit(ingest.submit_blocking, [an_event()]) for _ in range(3)]
                until(lambda: ingest.queued_events == 3)
                closing = pool.submit(ingest.close)
            closing.result()
            assert [each.result().accepted for each in (under_way, *queued)] == [1, 1, 1, 1]
        with pytest.raises(Unavailable):
            ingest.submit_blocking([an_event()])


class TestUnknownIds:
    @pytest.fixture
    def strict(self, engine: Engine, cache: redis.Redis) -> Iterator[Ingest]:
        opened = Ingest(engine, cache, Settings(auto_create=False), settle_seconds=0)
        yield opened
        opened.close()

    def test_are_created_as_bare_rows_by_default(self, ingest: Ingest, engine: Engine) -> None:
        ingest.submit_blocking([an_event("ann", "dune")])
        assert scalar(engine, "SELECT user_id FROM users") == "ann"
        assert scalar(engine, "SELECT item_id FROM items WHERE kind IS NULL AND categories = '{}'") == "dune"

    def test_are_refused_one_by_one_where_nothing_is_created(self, strict: Ingest, engine: Engine) -> None:
        with engine.begin() as db:
            db.execute(text("INSERT INTO users (user_id) VALUES ('ann')"))
            db.execute(text("INSERT INTO items (item_id) VALUES ('dune')"))
        with pytest.raises(Invalid) as refused:
            strict.submit_blocking([an_event("ann", "dune"), an_event("bob", "dune"), an_event("ann", "emma")])
        assert [error.loc for error in refused.value.errors] == [(1, "user_id"), (2, "item_id")]
        assert "'bob'" in refused.value.errors[0].msg
        assert stored_ids(engine) == []
        assert strict.submit_blocking([an_event("ann", "dune")]).accepted == 1


class TestLostPostgres:
    def test_a_terminated_connection_is_replaced_without_anyone_noticing(self, ingest: Ingest, engine: Engine) -> None:
        ingest.submit_blocking([an_event(event_id="before")])
        terminate_others(engine)
        receipt = ingest.submit_blocking([an_event(event_id="after")])
        assert (receipt.accepted, receipt.duplicates) == (1, 0)
        assert stored_ids(engine) == ["before", "after"]

    @pytest.mark.parametrize("noticed", ["at the commit", "after it"])
    def test_a_commit_without_an_answer_is_an_unknown_outcome_that_a_retry_settles(
        self, ingest: Ingest, engine: Engine, monkeypatch: pytest.MonkeyPatch, noticed: str
    ) -> None:
        ingest.submit_blocking([an_event("ann")])
        commit = engine.dialect.do_commit

        def commit_and_lose_the_answer(connection: Any) -> None:
            monkeypatch.undo()
            commit(connection)
            terminate_others(engine)
            if noticed == "at the commit":
                connection.cursor().execute("SELECT 1")

        monkeypatch.setattr(engine.dialect, "do_commit", commit_and_lose_the_answer)
        with pytest.raises(Unavailable, match="retry with the same ids"):
            ingest.submit_blocking([an_event(event_id="e1")])
        again = ingest.submit_blocking([an_event(event_id="e1")])
        assert (again.accepted, again.duplicates) == (0, 1)
        assert stored_ids(engine).count("e1") == 1

    def test_away_it_is_unavailable_and_comes_back_by_itself(self, cache: redis.Redis, postgres_url: str) -> None:
        """`ALLOW_CONNECTIONS false` and ended connections: for this database, the server is gone."""
        other = open_engine(postgres_url)
        ingest = Ingest(other, cache, Settings(), settle_seconds=0)
        ingest.submit_blocking([an_event()])
        with unreachable(postgres_url):
            started = time.monotonic()
            with pytest.raises(Unavailable, match="retry with the same ids"):
                ingest.submit_blocking([an_event(event_id="e1")])
            assert time.monotonic() - started < 60
        assert ingest.submit_blocking([an_event(event_id="e1")]).accepted == 1
        ingest.close()
        other.dispose()

    def test_stopped_it_answers_in_bounded_time(self, engine: Engine, cache: redis.Redis) -> None:
        ingest = Ingest(engine, cache, Settings(database_timeout_seconds=0.1), settle_seconds=0)
        with occupied(engine):
            started = time.monotonic()
            with pytest.raises(Unavailable, match="unknown"):
                asyncio.run(ingest.submit([an_event(event_id="e1")]))
            assert time.monotonic() - started < 60

        def is_answered() -> bool:
            with suppress(Unavailable):  # a fifth of a second is not much
                return ingest.submit_blocking([an_event(event_id="e1")]).accepted in (0, 1)
            return False

        until(is_answered)
        ingest.close()
        assert stored_ids(engine) == ["e1"]


def terminate_others(engine: Engine) -> None:
    """Ends every connection to the database of `engine` except the one that asks."""
    with engine.connect() as db:
        db.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


@contextmanager
def unreachable(url: str) -> Iterator[None]:
    name = make_url(url).database
    admin = psycopg2.connect(make_url(url).set(database="postgres").render_as_string(hide_password=False))
    admin.autocommit = True
    cursor = admin.cursor()
    cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    try:
        yield
    finally:
        cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        admin.close()


def test_a_group_is_bounded(engine: Engine, cache: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "GROUP_EVENTS", 4)
    ingest = Ingest(engine, cache, Settings(), settle_seconds=0)
    with ThreadPoolExecutor() as pool:
        with occupied(engine):
            waiting = [pool.submit(ingest.submit_blocking, [an_event(), an_event()]) for _ in range(6)]
            time.sleep(0.3)
        marks = {each.result().watermark for each in waiting}
    ingest.close()
    assert len(marks) >= 3
