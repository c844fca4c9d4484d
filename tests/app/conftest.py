"""A writer on real servers, for all tests of the service's parts; a module may have settings or a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine

from app.feedback.ingest import Ingest
from app.settings import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def cache(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, retry=Retry(NoBackoff(), 0), socket_timeout=60) as client:
        yield client


@pytest.fixture
def ingest(engine: Engine, cache: redis.Redis, settings: Settings) -> Iterator[Ingest]:
    opened = Ingest(engine, cache, settings, settle_seconds=0)
    yield opened
    opened.close()
