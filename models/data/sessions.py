"""Sessions: what was listened to in one sitting, one track after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Positions, Scores
from models.data.dataset import Interactions

LEAST_LISTENED = 0.5
"""Heard less than this, a track was the player's choice and not the listener's."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions in the order of their time, the oldest first; tracks within each in the order they were heard.

    tracks:    int32[n], positions 0 … n_items-1, repeats kept
    fractions: float32[n], how much of each was heard, 0–1; NaN where nobody measured
    bounds:    int64[s + 1]; session k is tracks[bounds[k]:bounds[k + 1]]
    users:     int32[s], whose each session is; None where nobody knows
    artists:   int32[n_items], whose each track is, below 0 for nobody's; None where nobody knows
    """

    tracks: Positions
    fractions: Scores
    bounds: NDArray[np.int64]
    n_items: int
    users: NDArray[np.int32] | None = None
    artists: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.bounds)

    @property
    def of_listen(self) -> NDArray[np.int64]:
        """int64[n]: the session that each listen belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @classmethod
    def of(
        cls,
        session_of: NDArray[np.integer],
        tracks: Positions,
        fractions: Scores | None,
        n_items: int,
        *,
        user_of: NDArray[np.integer] | None = None,
        artists: NDArray[np.int32] | None = None,
    ) -> Self:
        """From one row per listen, rows of a session side by side and in order; user_of: int[n], whose listen it is."""
        starts = (
            np.flatnonzero(np.diff(session_of, prepend=session_of[0] - 1)) if len(tracks) else np.empty(0, np.int64)
        )
        heard = np.full(len(tracks), np.nan, np.float32) if fractions is None else fractions.astype(np.float32)
        bounds = np.append(starts, len(tracks)).astype(np.int64)
        users = None if user_of is None else user_of[starts].astype(np.int32)
        return cls(tracks.astype(np.int32), heard, bounds, n_items, users, artists)

    @property
    def is_listened(self) -> NDArray[np.bool_]:
        """bool[n]: which tracks were listened to, or may have been: where nobody measured, all."""
        return ~(self.fractions < LEAST_LISTENED)

    def listened(self) -> Sessions:
        """Without what was broken off: who learns what to play from that learns to play what another player did."""
        kept = self.is_listened
        session = self.of_listen[kept]
        user = None if self.users is None else self.users[session]
        return Sessions.of(
            session, self.tracks[kept], self.fractions[kept], self.n_items, user_of=user, artists=self.artists
        )

    def take(self, which: slice) -> Sessions:
        """Neighbouring sessions."""
        first, last, _ = which.indices(len(self))
        bounds = self.bounds[first : max(first, last) + 1]
        heard = slice(int(bounds[0]), int(bounds[-1]))
        users = None if self.users is None else self.users[first : max(first, last)]
        return Sessions(
            self.tracks[heard], self.fractions[heard], bounds - bounds[0], self.n_items, users, self.artists
        )

    def prefixes(self) -> Prefixes:
        """Every beginning of every session that something follows, in order."""
        nexts = np.setdiff1d(np.arange(len(self.tracks)), self.bounds)
        return Prefixes(self, self.bounds[self.of_listen[nexts]], nexts)

    def listened_prefixes(self) -> Prefixes:
        """Those that something followed which was listened to; what was broken off before is in the beginnings."""
        every = self.prefixes()
        kept = self.is_listened[every.nexts]
        return Prefixes(self, every.starts[kept], every.nexts[kept])

    def last_prefixes(self) -> Prefixes:
        """Of every session all but its last track: the protocol called leave-last-out."""
        long_enough = self.lengths > 1
        return Prefixes(self, self.bounds[:-1][long_enough], self.bounds[1:][long_enough] - 1)


class Prefix(NamedTuple):
    """What was heard so far, and what came next."""

    tracks: Positions
    fractions: Scores
    target: int


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Beginnings of sessions.

    starts: int64[p], indices into the sessions' tracks
    nexts:  int64[p], the index of what came next: the beginning is tracks[start:next]
    """

    sessions: Sessions
    starts: NDArray[np.int64]
    nexts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.nexts)

    def __iter__(self) -> Iterator[Prefix]:
        tracks, fractions = self.sessions.tracks, self.sessions.fractions
        for start, following in zip(self.starts.tolist(), self.nexts.tolist(), strict=True):
            yield Prefix(tracks[start:following], fractions[start:following], int(tracks[following]))

    @property
    def targets(self) -> Positions:
        """int32[p]"""
        return self.sessions.tracks[self.nexts]

    @property
    def session_of(self) -> NDArray[np.int64]:
        """int64[p]: the session that each is the beginning of."""
        return np.searchsorted(self.sessions.bounds, self.starts, side="right") - 1

    def sample(self, most: int, *, seed: int) -> Prefixes:
        """At most `most` of them, drawn without replacement, in order."""
        if len(self) <= most:
            return self
        drawn = np.sort(np.random.default_rng(seed).choice(len(self), most, replace=False))
        return Prefixes(self.sessions, self.starts[drawn], self.nexts[drawn])


def split_newest(sessions: Sessions, share: float) -> tuple[Sessions, Sessions]:
    """The earlier sessions, and the newest `share` of them."""
    cut = len(sessions) - round(len(sessions) * share)
    return sessions.take(slice(0, cut)), sessions.take(slice(cut, len(sessions)))


def sessions_of_users(interactions: Interactions, n_items: int, *, pause: float) -> Sessions:
    """Cut every user's interactions where more than `pause` seconds pass between two; infinity: one session a user."""
    order = np.lexsort((interactions.timestamps, interactions.users))
    users, times = interactions.users[order], interactions.timestamps[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (users[1:] != users[:-1]) | (np.diff(times) > pause)
    starts = np.flatnonzero(begins)
    of_listen = np.cumsum(begins) - 1
    in_time = np.argsort(times[starts], kind="stable")
    place = np.empty_like(in_time)
    place[in_time] = np.arange(len(in_time))
    sorted_again = np.argsort(place[of_listen], kind="stable")
    chosen = order[sorted_again]
    return Sessions.of(
        place[of_listen][sorted_again], interactions.items[chosen], interactions.values[chosen], n_items,
        user_of=interactions.users[chosen],
    )  # fmt: skip
