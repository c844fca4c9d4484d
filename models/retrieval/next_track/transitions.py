"""Counted transitions: what was heard soon after a track.

Sequential rules with decay, after Ludewig and Jannach, "Evaluation of session-based recommendation algorithms" (2018),
who found them beside the best neural models of their time at a fraction of the cost. A count is divided by a power of
what leads away from the track in all, since a track met in every session says little about the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from models.data.sessions import Sessions
from models.retrieval.next_track.linked_tracks import LinkedTracks


@dataclass(frozen=True, slots=True)
class Counting:
    """How transitions are counted and read.

    steps:     a track leads to the `steps` after it, the d-th at 1 / d ** fade
    back:      what a transition counts against its direction
    dampening: counts are divided by their sum over the row to this power
    half_life: sessions after which a transition counts half; None: all alike
    last, decay: the latest tracks that are asked, and by how much each is quieter than the one after it
    """

    steps: int
    fade: float
    back: float
    dampening: float
    half_life: float | None
    last: int
    decay: float


ONE_WAY = Counting(steps=10, fade=1.0, back=0.0, dampening=0.5, half_life=None, last=5, decay=0.7)
BOTH_WAYS = Counting(steps=30, fade=0.7, back=0.3, dampening=0.6, half_life=100_000, last=20, decay=0.75)
"""Chosen on the newest tenth of nowplaying's training sessions (docs/next-track.md)."""


def fit_transition_counter(sessions: Sessions) -> LinkedTracks:
    """What follows, in order: finds the very next track, and puts it high."""
    return counted("transition_counter", sessions, ONE_WAY)


def fit_co_listens(sessions: Sessions) -> LinkedTracks:
    """What is heard around a track, before it too: finds more of what may come, less exactly when."""
    return counted("co_listens", sessions, BOTH_WAYS)


def counted(name: str, sessions: Sessions, how: Counting) -> LinkedTracks:
    """Count by any rules."""
    links = transitions(sessions, how)
    if how.back:
        links = sparse.csr_array(links + how.back * links.T)
    sums = np.maximum(np.asarray(links.sum(axis=1)).ravel(), 1e-9)
    links.data /= np.repeat(sums**how.dampening, np.diff(links.indptr)).astype(np.float32)
    return LinkedTracks.of(name, links, last=how.last, decay=how.decay)


def transitions(sessions: Sessions, how: Counting) -> sparse.csr_array:
    """float32[n_items, n_items]: from each track (row) to what came after it (column)."""
    session, tracks = sessions.of_listen, sessions.tracks
    age = len(sessions) - 1 - session
    worth = np.ones(len(tracks)) if how.half_life is None else 0.5 ** (age / how.half_life)
    froms, tos, weights = [], [], []
    for distance in range(1, how.steps + 1):
        first = np.flatnonzero(session[distance:] == session[:-distance])
        froms.append(tracks[first])
        tos.append(tracks[first + distance])
        weights.append((worth[first] / distance**how.fade).astype(np.float32))
    entries = np.concatenate(weights), (np.concatenate(froms), np.concatenate(tos))
    return sparse.csr_array(entries, shape=(sessions.n_items, sessions.n_items), dtype=np.float32)
