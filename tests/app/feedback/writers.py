"""Writers that change one user, and accidents that befall them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import Connection, Engine

from app.feedback import dirty_marks
from app.feedback.dirty_marks import ViewWriter
from app.feedback.event_log import store
from tests.app.feedback.examples import an_event


class Crash(Exception):
    """Stands for a kill -9 of the writer."""


def change(engine: Engine, cache: redis.Redis, expect: type[Exception] | None = None, *, item: str = "dune") -> None:
    """Stores one event of ann."""
    writer = ViewWriter(cache, ttl_seconds=100, settle_seconds=0)
    expectation = contextlib.nullcontext() if expect is None else pytest.raises(expect)
    with expectation, engine.connect() as db, writer.changing(db, ["ann"]):
        store(db, [[an_event("ann", item)]], auto_create=True)


def crash(*_: object) -> None:
    raise Crash


def away(*_: object, **__: object) -> None:
    raise dirty_marks.CacheAway("gone")


@contextlib.contextmanager
def short_wait(engine: Engine) -> Iterator[Connection]:
    """A transaction that gives up where a paused actor holds what it needs."""
    with engine.begin() as db:
        db.exec_driver_sql("SET LOCAL lock_timeout = '20ms'")
        yield db
