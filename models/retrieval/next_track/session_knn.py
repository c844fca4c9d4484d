"""Session-kNN: earlier sessions like this one, and what they went on with.

After STAN (Garg et al., "Sequence and time aware neighborhood for session-based recommendations", 2019) and VS-SKNN
(Ludewig and Jannach, 2018): tracks count by how late in this session they were heard and by how rare they are, sessions
by how recent they are, a neighbour's tracks by how near they stand to what both have in common, those after it more
than those before. Only the newest listens of each track are looked at, so that a hit costs no more than any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, NextCandidates, Parameters, Parts, Positions, Scores, SessionQuery
from models.data.sessions import Sessions
from models.retrieval.next_track.answers import Claims, Heard, NextOpinion, answer_of, firsts

_BITS, _WHICH = 8, 0xFF
"""Which of a session's latest tracks it is takes so many bits of a whole number."""
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Nearness:
    """What makes a session a neighbour. Chosen on the newest tenth of nowplaying's training sessions.

    neighbours: sessions that are listened to
    newest:     listens of each track that are looked at
    last, decay: the session's latest tracks that count, each `decay` times as much as the one after it
    rarity:     the power of log(sessions / listens) that a track counts by
    half_life:  sessions after which a neighbour counts half
    shortness:  a neighbour counts by its length to minus this power
    reach:      tracks over which a neighbour's say falls by e
    before:     what tracks before the common ones count
    """

    neighbours: int = 150
    newest: int = 500
    last: int = 10
    decay: float = 0.6
    rarity: float = 1.5
    half_life: float = 60_000
    shortness: float = 0.3
    reach: float = 3.0
    before: float = 0.5


@dataclass(frozen=True)
class SessionKnn:
    """Built by `fit_session_knn` or `from_parts`.

    tracks:  int32[n], all sessions' tracks, oldest session first
    bounds:  int64[s + 1], where each session begins
    listens: int32[n], indices into `tracks` by track, oldest first
    starts:  int64[n_items + 1], where each track's listens begin
    """

    name: ClassVar[str] = "session_knn"
    tracks: Positions
    bounds: NDArray[np.int64]
    listens: NDArray[np.int32]
    starts: NDArray[np.int64]
    nearness: Nearness

    @property
    def n_items(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def _windows(self) -> NDArray[np.int64]:
        """int64[n_items, 2]: where in `listens` the newest of each track begin and end."""
        ends = self.starts[1:]
        return np.stack([np.maximum(self.starts[:-1], ends - self.nearness.newest), ends], axis=1)

    @cached_property
    def _fading(self) -> Scores:
        """float32[last]: what the session's tracks count, the latest first."""
        return (self.nearness.decay ** np.arange(self.nearness.last)).astype(np.float32)

    @cached_property
    def _by_track(self) -> NDArray[np.int64]:
        """int64[n]: of each of `listens` the session in the upper half, and in the lower one its place there, above
        _BITS empty bits. Side by side for a track, and sorting these sorts by session."""
        lengths = np.diff(self.bounds)
        session = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(self.tracks)) - self.bounds[:-1].repeat(lengths)
        return np.asarray((session << 32 | places << _BITS)[self.listens])

    @cached_property
    def _rarity(self) -> NDArray[np.float64]:
        """float64[n_items]"""
        share = np.maximum(np.diff(self.starts), 1) / max(len(self.bounds) - 1, 1)
        return np.asarray(np.maximum(-np.log(np.minimum(share, 0.999)), 0) ** self.nearness.rarity)

    @cached_property
    def _worth(self) -> NDArray[np.float64]:
        """float64[s]: what a neighbour counts, however alike."""
        age = np.arange(len(self.bounds) - 1)[::-1]
        lengths = np.diff(self.bounds)
        return np.asarray(0.5 ** (age / self.nearness.half_life) / lengths**self.nearness.shortness)

    def claims(self, heard: Heard) -> Claims:
        """What the neighbours went on with, or had around what they have in common."""
        common = self._common(heard)
        if common is None:
            return Claims.none()
        sessions, likeness, places = self._neighbours(*common)
        begins = self.bounds.take(sessions)
        lengths = self.bounds.take(sessions + 1)
        lengths -= begins
        starts = lengths.cumsum()
        n = int(starts[-1])
        starts -= lengths
        listens = (begins - starts).repeat(lengths)
        listens += np.arange(n)
        away = np.arange(n, dtype=np.float64)
        away -= (starts + places).repeat(lengths)
        # What stands right at the mean of several places doesn't stand before it for rounding's sake.
        factors = (away < -_ROUNDING) * (self.nearness.before - 1)
        factors += 1
        factors *= likeness.repeat(lengths)
        says = np.abs(away, out=away)
        says *= -1 / self.nearness.reach
        np.exp(says, out=says)
        says *= factors
        return Claims(self.tracks.take(listens), says)

    def opinion(self, heard: Heard) -> NextOpinion:
        return NextOpinion.of(self.claims(heard), self.n_items)

    def _common(self, heard: Heard) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Earlier listens of this session's tracks as in `_by_track`, which track it is in the last bits, by session;
        and what each of these tracks counts."""
        latest = heard.positions[: -self.nearness.last - 1 : -1]
        loudness = heard.strengths[: -self.nearness.last - 1 : -1] * self._fading[: len(latest)]
        tracks = latest.tolist()
        if len(set(tracks)) < len(tracks):
            # Of a track that was heard twice the later time counts.
            once = [place for place, track in enumerate(tracks) if track not in tracks[:place]]
            latest, loudness = latest[once], loudness[once]
        parts = [self._by_track[start:end] for start, end in self._windows.take(latest, axis=0).tolist()]
        counts = [len(part) for part in parts]
        if not sum(counts):
            return None
        listens = np.concatenate(parts)
        listens += np.arange(len(parts)).repeat(counts)
        listens.sort()
        return listens, loudness * self._rarity.take(latest)

    def _neighbours(
        self, listens: NDArray[np.int64], loudness: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """The nearest sessions, how near they are, and about where in each stands what is in common."""
        sessions = listens >> 32
        weights = loudness.take(listens & _WHICH)
        listens &= 0xFFFFFFFF
        listens >>= _BITS
        starts = firsts(sessions)
        found = sessions.take(starts)
        alike = total = np.add.reduceat(weights, starts)
        if loudness.min() < 0:
            np.abs(weights, out=weights)
            total = np.add.reduceat(weights, starts)
        weights *= listens
        places = np.add.reduceat(weights, starts)
        places /= np.maximum(total, 1e-9)
        likeness = alike * self._worth.take(found)
        if len(found) > self.nearness.neighbours:
            # Sessions around what was skipped speak as loudly against as others speak for.
            near = np.argpartition(np.abs(likeness), -self.nearness.neighbours)[-self.nearness.neighbours :]
            found, likeness, places = found.take(near), likeness.take(near), places.take(near)
        return found, likeness, places

    def next(self, query: SessionQuery) -> NextCandidates:
        return answer_of(self, query)

    def parts(self) -> Parts:
        arrays: dict[str, NDArray[Any]] = {
            "tracks": self.tracks,
            "bounds": self.bounds,
            "listens": self.listens,
            "starts": self.starts,
        }
        parameters: Mapping[str, Any] = asdict(self.nearness)
        return Parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        """Raises ValueError where more of a session's tracks count than can be told apart."""
        nearness = Nearness(**dict(parameters))
        if nearness.last > _WHICH + 1:
            raise ValueError(f"session_knn: last is {nearness.last}, at most {_WHICH + 1} tracks can be told apart")
        return cls(arrays["tracks"], arrays["bounds"], arrays["listens"], arrays["starts"], nearness)


def fit_session_knn(sessions: Sessions, nearness: Nearness | None = None) -> SessionKnn:
    """Nothing is learned: the sessions are put in order."""
    listens = np.argsort(sessions.tracks, kind="stable").astype(np.int32)
    starts = np.searchsorted(sessions.tracks[listens], np.arange(sessions.n_items + 1)).astype(np.int64)
    return SessionKnn(sessions.tracks, sessions.bounds, listens, starts, nearness or Nearness())
