"""A user's listening sessions as Redis keeps them, to be given back to the user."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from redis import Redis

from app.feedback.sessions import LISTEN, list_key, session_key


@dataclass(frozen=True, slots=True)
class KeptSession:
    """What is kept of one session, oldest first; tracks by their rows.

    expires_at: unix seconds
    listens:    row, fraction and unix seconds of each
    given:      rows that it was answered with
    """

    session_id: str
    expires_at: float
    listens: list[tuple[int, float, float]]
    given: list[int]

    @property
    def rows(self) -> set[int]:
        return {row for row, _, _ in self.listens} | set(self.given)


def sessions_of(cache: Redis, user_id: str) -> list[KeptSession]:
    """All that have not expired, by their ids; one that was ended is kept until then. Raises RedisError."""
    kept = []
    digests: Any = cache.zrange(list_key(user_id), 0, -1)
    for digest in digests:
        key = session_key(user_id, digest.decode())
        with cache.pipeline(transaction=True) as asking:
            asking.hmget(key, ["id", "listens", "met", "roles"])
            asking.pttl(key)
            (session_id, listens, met, roles), left_ms = asking.execute()
        # It may have expired; the list is put right when a session begins.
        if session_id is not None:
            rows, by = np.frombuffer(met or b"", "<i4"), np.frombuffer(roles or b"", np.uint8)
            heard = np.frombuffer(listens or b"", LISTEN).tolist()
            # 0: the listener chose it, and was not given it.
            given = rows[by != 0].tolist()
            kept.append(KeptSession(session_id.decode(), time.time() + left_ms / 1000, heard, given))
    return sorted(kept, key=lambda session: session.session_id)
