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
from models.retrieval.next_track.answers import Claims, Heard, NextOpinion, answer_of, firsts, in_order


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
    def _session_of(self) -> NDArray[np.int32]:
        return np.repeat(np.arange(len(self.bounds) - 1, dtype=np.int32), np.diff(self.bounds))

    @cached_property
    def _place_of(self) -> NDArray[np.int32]:
        """int32[n]: each listen's place in its session."""
        return (np.arange(len(self.tracks)) - self.bounds[:-1][self._session_of]).astype(np.int32)

    @cached_property
    def _windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[n_items] twice: where in `listens` the newest of each track begin and end."""
        ends = self.starts[1:]
        return np.maximum(self.starts[:-1], ends - self.nearness.newest), ends

    @cached_property
    def _fading(self) -> Scores:
        """float32[last]: what the session's tracks count, the latest first."""
        return (self.nearness.decay ** np.arange(self.nearness.last)).astype(np.float32)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        """int64[s]"""
        return np.diff(self.bounds)

    @cached_property
    def _by_track(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """int32[n] twice: the session of each of `listens`, and its place there; side by side for a track."""
        return self._session_of[self.listens], self._place_of[self.listens]

    @cached_property
    def _rarity(self) -> Scores:
        """float32[n_items]"""
        share = np.maximum(np.diff(self.starts), 1) / max(len(self.bounds) - 1, 1)
        return np.maximum(-np.log(np.minimum(share, 0.999)), 0).astype(np.float32) ** np.float32(self.nearness.rarity)

    @cached_property
    def _worth(self) -> Scores:
        """float32[s]: what a neighbour counts, however alike."""
        age = np.arange(len(self.bounds) - 1)[::-1]
        return (0.5 ** (age / self.nearness.half_life) / self._lengths**self.nearness.shortness).astype(np.float32)

    def claims(self, heard: Heard) -> Claims:
        """What the neighbours went on with, or had around what they have in common."""
        common = self._common(heard)
        if common is None:
            return Claims.none()
        sessions, likeness, places = self._neighbours(*common)
        first, lengths = self.bounds[sessions], self._lengths[sessions]
        ends = lengths.cumsum()
        index = np.arange(ends[-1]) + (first - ends + lengths).repeat(lengths)
        away = self._place_of[index] - places.repeat(lengths)
        say = np.exp(np.abs(away) * np.float32(-1 / self.nearness.reach))
        say[away < 0] *= np.float32(self.nearness.before)
        return Claims(self.tracks[index], say * likeness.repeat(lengths))

    def opinion(self, heard: Heard) -> NextOpinion:
        return NextOpinion.of(self.claims(heard), self.n_items)

    def _common(self, heard: Heard) -> tuple[NDArray[np.int32], NDArray[np.int32], Scores] | None:
        """Earlier listens of this session's tracks: the session of each, its place there, and what it counts."""
        latest = heard.positions[: -self.nearness.last - 1 : -1]
        loudness = heard.strengths[: -self.nearness.last - 1 : -1] * self._fading[: len(latest)] * self._rarity[latest]
        windows = zip(loudness.tolist(), *(each[latest].tolist() for each in self._windows), strict=True)
        # Of a track that was heard twice the later time counts.
        found = dict(reversed(list(zip(latest.tolist(), windows, strict=True))))
        weights, parts = [], []
        for loud, start, end in found.values():
            weights.append(loud)
            parts.append(slice(start, end))
        counts = [part.stop - part.start for part in parts]
        if not sum(counts):
            return None
        sessions, places = (np.concatenate([each[part] for part in parts]) for each in self._by_track)
        return sessions, places, np.array(weights, np.float32).repeat(counts)

    def _neighbours(
        self, sessions: NDArray[np.int32], places: NDArray[Any], weights: Scores
    ) -> tuple[NDArray[np.int32], Scores, NDArray[np.float32]]:
        """The nearest sessions, how near they are, and about where in each stands what is in common."""
        sessions, order = in_order(sessions)
        weights = weights[order]
        starts = firsts(sessions)
        alike = np.add.reduceat(weights, starts)
        loud = np.abs(weights)
        places = np.add.reduceat(loud * places[order], starts) / np.maximum(
            np.add.reduceat(loud, starts), np.float32(1e-9)
        )
        found = sessions[starts]
        likeness = alike * self._worth[found]
        if len(found) > self.nearness.neighbours:
            # Sessions around what was skipped speak as loudly against as others speak for.
            near = np.argpartition(np.abs(likeness), -self.nearness.neighbours)[-self.nearness.neighbours :]
            found, likeness, places = found[near], likeness[near], places[near]
        return found, likeness, places.astype(np.float32)

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
        return cls(
            arrays["tracks"], arrays["bounds"], arrays["listens"], arrays["starts"], Nearness(**dict(parameters))
        )


def fit_session_knn(sessions: Sessions, nearness: Nearness | None = None) -> SessionKnn:
    """Nothing is learned: the sessions are put in order."""
    listens = np.argsort(sessions.tracks, kind="stable").astype(np.int32)
    starts = np.searchsorted(sessions.tracks[listens], np.arange(sessions.n_items + 1)).astype(np.int64)
    return SessionKnn(sessions.tracks, sessions.bounds, listens, starts, nearness or Nearness())
