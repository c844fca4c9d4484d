"""Sessions small enough to know the right answer by heart."""

from __future__ import annotations

import numpy as np

from models.contracts import SessionQuery
from models.data.sessions import Sessions

N_TRACKS = 40
RING_A, RING_B = range(20), range(20, 39)
NEVER_HEARD = 39


def sessions_of(*tracks: list[int], n_items: int = N_TRACKS, fractions: list[list[float]] | None = None) -> Sessions:
    session_of = np.repeat(np.arange(len(tracks)), [len(part) for part in tracks])
    heard = None if fractions is None else np.concatenate([np.array(part, np.float32) for part in fractions])
    return Sessions.of(session_of, np.concatenate([np.array(part, np.int32) for part in tracks]), heard, n_items)


def ring_sessions(count: int = 400, *, seed: int = 0) -> Sessions:
    """Each session walks around one of two rings of tracks, now and then leaving one out."""
    rng = np.random.default_rng(seed)
    sessions = []
    for _ in range(count):
        ring = list(RING_A if rng.random() < 0.5 else RING_B)
        at, session = int(rng.integers(len(ring))), []
        for _ in range(int(rng.integers(3, 9))):
            session.append(ring[at % len(ring)])
            at += 1 + int(rng.random() < 0.1)
        sessions.append(session)
    return sessions_of(*sessions)


def after(
    *tracks: int, limit: int = 5, excluded: tuple[int, ...] = (), fractions: list[float] | None = None
) -> SessionQuery:
    heard = np.full(len(tracks), np.nan, np.float32) if fractions is None else np.array(fractions, np.float32)
    return SessionQuery(np.array(tracks, np.int32), heard, at=0.0, limit=limit, excluded=np.array(excluded, np.int32))
