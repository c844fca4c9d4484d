"""What is listened to most, whatever came before: the yardstick, and what is left where nothing else speaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from models.contracts import Arrays, NextCandidates, Parameters, Parts, Scores, SessionQuery
from models.data.sessions import Sessions
from models.retrieval.next_track.answers import Heard, NextOpinion, answer

_RECENT = 0.1


@dataclass(frozen=True)
class PopularTracks:
    """Built by `fit_popular_tracks` or `from_parts`.

    counts: float32[n], listens of each track
    recent: float32[n], those in the newest tenth of all listens
    """

    name: ClassVar[str] = "popular_tracks"
    counts: Scores
    recent: Scores

    @property
    def n_items(self) -> int:
        return len(self.counts)

    def opinion(self, heard: Heard) -> NextOpinion:  # noqa: ARG002 - popularity asks nobody
        positions = np.flatnonzero(self.counts > 0).astype(np.int32)
        return NextOpinion(positions, self.counts[positions])

    def next(self, query: SessionQuery) -> NextCandidates:
        return answer(np.arange(self.n_items, dtype=np.int32), np.asarray(self.counts), query)

    def parts(self) -> Parts:
        return Parts({}, {"counts": self.counts, "recent": self.recent})

    @classmethod
    def from_parts(cls, _: Parameters, arrays: Arrays) -> Self:
        return cls(arrays["counts"], arrays["recent"])


def fit_popular_tracks(sessions: Sessions) -> PopularTracks:
    newest = sessions.tracks[len(sessions.tracks) - round(len(sessions.tracks) * _RECENT) :]
    counts, recent = (np.bincount(tracks, minlength=sessions.n_items) for tracks in (sessions.tracks, newest))
    return PopularTracks(counts.astype(np.float32), recent.astype(np.float32))
