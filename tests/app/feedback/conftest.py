"""A reader as the service has it, and a cache that is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from app.catalog import versions
from app.feedback import user_state
from app.feedback.user_state import UserView, view_key
from app.settings import Settings
from tests.app.feedback import examples
from tests.app.feedback.examples import A_SERVER


@pytest.fixture
def read_view(engine: Engine, cache: redis.Redis, settings: Settings) -> Callable[[str], UserView]:
    """A reader who knows the current version of the cache keys."""

    def read(user_id: str) -> UserView:
        with engine.connect() as db:
            version = versions.read(db)["cache"]
        raw = cache.hgetall(user_state.view_key(version, user_id))
        found = user_state.interpret(raw, A_SERVER, time.time())
        if found.view is not None:
            return found.view
        found = examples.planted(cache, version, user_id, found)
        return user_state.rebuild(engine, cache, version, user_id, found, settings)

    return read


@pytest.fixture
def key(engine: Engine) -> Callable[[], str]:
    """Ann's key, as it is called now."""

    def current() -> str:
        with engine.connect() as db:
            return view_key(versions.read(db)["cache"], "ann")

    return current


@pytest.fixture
def dead_cache() -> Iterator[redis.Redis]:
    with redis.Redis(port=1, retry=Retry(NoBackoff(), 0), socket_timeout=0.2) as client:
        yield client
