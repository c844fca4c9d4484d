"""A database that was restored with tools of one's own, beside a Redis that remembers what came after."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from app.catalog import versions
from app.feedback import user_state
from app.feedback.ingest import Ingest
from app.feedback.user_state import UserView
from app.settings import Settings
from app.storage.database import open_engine
from app.storage.new_life import begin_new_life
from app.storage.redis import VERSIONS_KEY, publish_versions
from tests.app.feedback.examples import an_event, planted


@pytest.fixture
def cache(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, socket_timeout=60) as client:
        yield client


@pytest.fixture
def restored(postgres_url: str, engine: Engine, cache: redis.Redis) -> Iterator[Engine]:
    """The database as it was before ann's second event, which Redis knows of."""
    url = make_url(postgres_url).set(drivername="postgresql+psycopg2")
    name = f"segue_test_{uuid4().hex}"
    admin = create_engine(url.set(database="postgres"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    does(engine, cache, "first")
    engine.dispose()
    with admin.connect() as db:
        db.execute(text(f'create database "{name}" template "{url.database}"'))
    does(engine, cache, "second")
    assert len(past(engine, cache).seen) == 2
    opened = open_engine(url.set(database=name).render_as_string(hide_password=False))
    yield opened
    opened.dispose()
    with admin.connect() as db:
        db.execute(text(f'drop database "{name}" with (force)'))


def does(engine: Engine, cache: redis.Redis, item: str) -> None:
    ingest = Ingest(engine, cache, Settings(), settle_seconds=0)
    ingest.submit_blocking([an_event("ann", item)])
    ingest.close()


def past(engine: Engine, cache: redis.Redis) -> UserView:
    """As a worker reads it: under the version of its database, told to Redis, from Redis where there is a view."""
    with engine.connect() as db:
        known = versions.read(db)
    publish_versions(cache, known)
    assert cache.hget(VERSIONS_KEY, "cache") == known["cache"].encode(), "Redis keeps to another life"
    server = str(cache.info("server")["run_id"])
    raw: Any = cache.hgetall(user_state.view_key(known["cache"], "ann"))
    found = user_state.interpret(raw, server, time.time())
    found = planted(cache, known["cache"], "ann", found)
    return found.view or user_state.rebuild(engine, cache, known["cache"], "ann", found, Settings())


def test_without_a_new_life_redis_would_be_believed(restored: Engine, cache: redis.Redis) -> None:
    """So the next test could fail."""
    assert len(past(restored, cache).seen) == 2


def test_what_redis_remembers_of_another_life_is_not_believed(restored: Engine, cache: redis.Redis) -> None:
    with restored.begin() as db:
        db.execute(text("insert into jobs (job_id, kind, status) values ('a', 'train', 'running')"))
        assert not begin_new_life(db, actor="tests"), "a copy within the cluster keeps its transactions"
    assert len(past(restored, cache).seen) == 1
    with restored.connect() as db:
        assert db.execute(text("select status from jobs")).scalar_one() == "failed"
        assert db.execute(text("select action, actor from audit_log")).one() == ("database.restored", "tests")
