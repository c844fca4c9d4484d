"""The list of a user's sessions in Redis, where workers differ in how long a silence ends one (as in an upgrade)."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import redis

from app.feedback.session_export import sessions_of
from app.feedback.sessions import CANDIDATE, Claim, SessionStore, list_key
from app.storage.redis import open_async


async def begin(redis_url: str, session_id: str, timeout_seconds: int) -> None:
    """A session of ann's, which is given one track."""
    client = open_async(redis_url, timeout_seconds=60)
    sessions = SessionStore(client, timeout_seconds=timeout_seconds, length=100)
    found = await sessions.find("ann", session_id)
    assert found.session is not None
    claim = Claim(np.zeros(1, CANDIDATE), wanted=1, again_from=0, is_final=True, about=b"")
    assert await sessions.claim("ann", session_id, found.session.life, claim)
    await client.aclose()


@pytest.mark.parametrize("timeouts", [{"long": 7_200, "short": 600}, {"short": 600, "long": 7_200}])
def test_the_list_lives_as_long_as_the_last_session(
    cache: redis.Redis, redis_url: str, timeouts: dict[str, int]
) -> None:
    for session_id, timeout_seconds in timeouts.items():
        asyncio.run(begin(redis_url, session_id, timeout_seconds))
    assert cache.ttl(list_key("ann")) > timeouts["short"]
    assert [session.session_id for session in sessions_of(cache, "ann")] == ["long", "short"]
