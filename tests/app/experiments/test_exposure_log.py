"""Exposures are noted once, stored behind the answers, kept when the process dies, and counted where they are lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, text

from app.catalog import versions
from app.catalog.users import hash_of
from app.experiments.assigning import Assigned
from app.experiments.definitions import Experiment, Variant
from app.experiments.exposure_log import ExposureLog
from app.experiments.exposures import Exposure, line_of
from app.feedback.dirty_marks import ERASURE_LOCK, ViewWriter
from app.storage.database import database_id
from tests.patience import until

VARIANTS = (Variant("control", 0.5), Variant("treatment", 0.5))
SEEN = Exposure("x", 1, "ann", "control", datetime.now(UTC), "few", "feed", None, "r1", "host:1")
Open = Callable[..., ExposureLog]


def mine(key: str = "x", variant: int = 0, *, is_forced: bool = False, **more: Any) -> Assigned:
    fields = {"run": 1, "seed": key, "namespace": None, "coverage": 1.0, "variants": VARIANTS} | more
    return Assigned(Experiment(key, **fields), VARIANTS[variant], is_forced)


def note(log: ExposureLog, *assigned: Assigned, **more: Any) -> asyncio.Future[None] | None:
    asked = {"user_id": "ann", "route": "few", "surface": "feed", "release": None, "request_id": "r1"} | more
    return log.note(assigned or (mine(),), **asked)


def rows(engine: Engine, columns: str = "experiment, user_id, variant, marks") -> list[tuple[Any, ...]]:
    with engine.connect() as db:
        return [tuple(row) for row in db.execute(text(f"select {columns} from exposures order by 1, 2"))]


@pytest.fixture
def open_log(engine: Engine, cache: redis.Redis, tmp_path: Path) -> Iterator[Open]:
    opened: list[ExposureLog] = []

    def open_one(capacity: int = 1_000, cache: redis.Redis = cache) -> ExposureLog:
        with engine.connect() as db:
            identity = database_id(db)
        views = ViewWriter(cache, ttl_seconds=60, settle_seconds=0)
        opened.append(
            ExposureLog(engine, views, folder=tmp_path / "exposures", database_id=identity, capacity=capacity)
        )
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_a_user_is_noted_once_for_each_experiment_and_marks_add_up(engine: Engine, open_log: Open) -> None:
    log = open_log()
    for _ in range(3):
        note(log, mine("x"), mine("y", 1))
    note(log, mine("x"), marks=("bot",), request_id="r2")
    log.close()
    assert rows(engine) == [("x", "ann", "control", ["bot"]), ("y", "ann", "treatment", [])]
    assert rows(engine, "experiment, request_id") == [("x", "r1"), ("y", "r1")]


def test_who_is_forced_into_one_variant_is_marked_in_all(engine: Engine, open_log: Open) -> None:
    """What a tester is served in the one is no part of what the other compares."""
    log = open_log()
    note(log, mine("x"), mine("y", 1, is_forced=True))
    log.close()
    assert rows(engine, "experiment, marks") == [("x", ["forced"]), ("y", ["forced"])]


def test_the_first_exposure_counts_whichever_worker_writes_first(engine: Engine, open_log: Open) -> None:
    early, late = open_log(), open_log()
    note(early, route="few", request_id="early", marks=("bot",))
    until(lambda: len(rows(engine)) == 1)
    with engine.begin() as db:
        db.execute(text("update exposures set exposed_at = exposed_at + interval '1 hour', request_id = 'later'"))
    note(late, route="new", request_id="now", marks=("fallback",))
    late.close()
    assert rows(engine, "request_id, route, marks") == [("now", "new", ["bot", "fallback"])]
    after = open_log()
    note(after, request_id="after")
    after.close()
    assert rows(engine, "request_id, route, marks") == [("now", "new", ["bot", "fallback"])]


def test_in_an_experiment_with_a_route_the_request_can_wait_until_all_know(engine: Engine, open_log: Open) -> None:
    log = open_log()

    async def scenario() -> None:
        waited = note(log, mine(route="few"))
        assert waited is not None
        async with asyncio.timeout(60):
            await waited
        assert rows(engine) == [("x", "ann", "control", [])]
        assert note(log, mine(route="few")) is None, "it is known by now"
        assert note(log, mine(route="few"), user_id="bob", fixed={("x", 1)}) is None, "bob's past tells of it"
        assert note(log, mine("y"), user_id="bob") is None, "nothing can undo it"

    asyncio.run(scenario())


def test_where_redis_is_away_no_worker_believes_what_it_still_has(engine: Engine, open_log: Open) -> None:
    def version() -> str:
        with engine.connect() as db:
            return versions.read(db)["cache"]

    before = version()
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0)) as away:
        log = open_log(cache=away)

        async def scenario() -> None:
            waited = note(log, mine(route="few"))
            assert waited is not None
            async with asyncio.timeout(60):
                await waited
            assert version() != before
            assert len(rows(engine)) == 1

        asyncio.run(scenario())
        log.close()


def test_what_waits_beyond_the_bound_is_lost_and_counted_once(engine: Engine, open_log: Open) -> None:
    log, before = open_log(capacity=1), datetime.now(UTC).date()
    with engine.connect() as db, db.begin():
        db.execute(text("lock table exposures"))
        note(log)
        until(lambda: log.queued == 0)
        note(log, user_id="bob")
        for _ in range(3):
            note(log, mine("x", 1), user_id="cy")
    until(lambda: len(rows(engine)) == 2)
    note(log, mine("x", 1), user_id="cy")
    log.close()
    assert [row[1] for row in rows(engine)] == ["ann", "bob", "cy"], "a lost user is noted by the next request"
    with engine.connect() as db:
        [(*lost, day)] = db.execute(text("select experiment, run, variant, lost, day from exposure_losses")).all()
    assert lost == ["x", 1, "treatment", 1]
    assert before <= day <= datetime.now(UTC).date()


def test_what_cannot_be_stored_is_lost_alone(engine: Engine, open_log: Open) -> None:
    log = open_log()
    with engine.connect() as db, db.begin():
        db.execute(text("lock table exposures"))
        note(log)
        until(lambda: log.queued == 0)
        note(log, user_id="bob", surface="\0")
        note(log, user_id="cy")
    log.close()
    assert [row[1] for row in rows(engine)] == ["ann", "cy"]
    with engine.connect() as db:
        assert db.execute(text("select sum(lost) from exposure_losses")).scalar_one() == 1


def test_while_postgres_takes_nothing_it_waits_and_nobody_waits_for_it(engine: Engine, open_log: Open) -> None:
    """As a replica it is for a while, here; gone, hung or full, it is the same."""
    log = open_log()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        name = db.scalar(text("select current_database()"))
        db.execute(text(f'alter database "{name}" set default_transaction_read_only = on'))
        engine.dispose()
        try:

            async def scenario() -> None:
                waited = note(log, mine(route="few"))
                assert waited is not None
                async with asyncio.timeout(60):
                    await waited
                assert note(log, mine(route="few"), user_id="bob") is None

            asyncio.run(scenario())
        finally:
            db.execute(text("set default_transaction_read_only = off"))
            db.execute(text(f'alter database "{name}" reset default_transaction_read_only'))
            engine.dispose()
    until(lambda: len(rows(engine)) == 2)


def test_what_an_erased_user_was_exposed_to_before_does_not_come_back(engine: Engine, open_log: Open) -> None:
    log = open_log()
    with engine.begin() as db:
        db.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": ERASURE_LOCK})
        note(log, deletions="1")
        note(log, user_id="bob", deletions="1")
        statement = "insert into tombstones (user_hash, erased_at) values (:hash, clock_timestamp())"
        db.execute(text(statement), {"hash": hash_of("ann")})
    until(lambda: [row[1] for row in rows(engine)] == ["bob"])
    note(log, deletions="2", request_id="of another life")
    log.close()
    assert rows(engine, "user_id, request_id") == [("ann", "of another life"), ("bob", "r1")]


def test_what_a_dead_process_left_behind_is_stored_by_the_next(engine: Engine, open_log: Open, tmp_path: Path) -> None:
    with engine.connect() as db:
        name = f"{database_id(db)}-1-1.jsonl"
    folder = tmp_path / "exposures"
    folder.mkdir()
    bob = replace(SEEN, user_id="bob", exposed_at=SEEN.exposed_at - timedelta(hours=1), marks=("bot",))
    lost = b'{"losses": [{"experiment": "x", "run": 1, "variant": "control", "day": "2026-01-02", "lost": 3}]}'
    lines = [line_of(SEEN), line_of(bob), line_of(bob), b'{"of": "another version"}', b"[]", lost, line_of(bob)[:-9]]
    (folder / name).write_bytes(b"\n".join(lines))
    open_log()
    until(lambda: not (folder / name).exists())
    assert rows(engine) == [("x", "ann", "control", []), ("x", "bob", "control", ["bot"])]
    with engine.connect() as db:
        assert db.execute(text("select lost from exposure_losses")).scalars().all() == [3]


KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import text
from app.feedback.dirty_marks import ViewWriter
from app.storage.database import database_id, open_engine
import redis
from app.experiments.exposure_log import ExposureLog
from tests.app.experiments.test_exposure_log import note
engine = open_engine(sys.argv[1])
with engine.connect() as db:
    identity = database_id(db)
with engine.connect() as db, db.begin():
    db.execute(text("lock table exposures"))
    views = ViewWriter(redis.Redis.from_url(sys.argv[2]), ttl_seconds=60)
    log = ExposureLog(engine, views, folder=Path(sys.argv[3]), database_id=identity, capacity=100)
    for number in range(50):
        note(log, user_id=f"user-{number}")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_loses_nothing_that_it_noted(
    engine: Engine, postgres_url: str, redis_url: str, open_log: Open, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", KILLED, postgres_url, redis_url, str(tmp_path / "exposures")]
    assert subprocess.run(arguments, check=False, env=os.environ).returncode == -signal.SIGKILL
    assert rows(engine) == []
    open_log()
    until(lambda: len(rows(engine)) == 50)
