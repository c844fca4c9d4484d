"""From a player's question to the answer: what all recommenders of the next track share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from models.contracts import Mask, NextCandidates, Positions, Scores, SessionQuery

UNKNOWN_LISTENING = 0.75
"""What is expected to be heard of a track where no fraction was ever measured; above every threshold of the rules."""
LONGEST = 30
"""Tracks of a session that anybody looks back at."""
_LIKED, _LEFT = 0.7, 0.3
"""Heard up to here a track was liked; from here down it speaks against its like."""


class Heard(NamedTuple):
    """What a session says, the latest track last.

    positions: int32[n], n up to LONGEST
    fractions: float32[n], NaN where nobody measured
    """

    positions: Positions
    fractions: Scores

    @property
    def strengths(self) -> Scores:
        """float32[n]: 1 for what was heard (or not measured), falling below 0.7, down to -0.5 for what was skipped."""
        slope = (self.fractions - np.float32(_LEFT)) / np.float32(_LIKED - _LEFT)
        return np.asarray(np.nan_to_num(np.clip(slope, np.float32(-0.5), np.float32(1)), nan=1.0))

    @classmethod
    def of(cls, query: SessionQuery, n_items: int) -> Heard:
        """The latest tracks that a recommender of `n_items` knows."""
        positions, fractions = query.positions[-LONGEST:], query.fractions[-LONGEST:]
        if positions.max(initial=-1) < n_items and positions.min(initial=0) >= 0:
            return cls(positions, fractions)
        is_known = (query.positions >= 0) & (query.positions < n_items)
        return cls(query.positions[is_known][-LONGEST:], query.fractions[is_known][-LONGEST:])


class NextOpinion(NamedTuple):
    """What one recommender thinks of the tracks that it has met after such a session.

    positions: int32[k], ascending, each once
    scores:    float32[k], positive; tracks that are not named have none
    """

    positions: Positions
    scores: Scores

    @classmethod
    def none(cls) -> NextOpinion:
        return cls(np.empty(0, np.int32), np.empty(0, np.float32))

    def best(self, most: int) -> NextOpinion:
        """The `most` highest, still ascending by position."""
        if len(self.positions) <= most:
            return self
        kept = np.sort(np.argpartition(self.scores, len(self.scores) - most)[len(self.scores) - most :])
        return NextOpinion(self.positions[kept], self.scores[kept])

    def of(self, positions: Positions) -> Scores:
        """float32[m]: the scores of these positions, 0 where there is none."""
        if len(self.positions) == 0:
            return np.zeros(len(positions), np.float32)
        found = np.minimum(np.searchsorted(self.positions, positions), len(self.positions) - 1)
        return np.where(self.positions[found] == positions, self.scores[found], np.float32(0))


class HasOpinion(Protocol):
    """A recommender whose opinion of a session is a short list."""

    @property
    def n_items(self) -> int: ...

    def opinion(self, heard: Heard) -> NextOpinion: ...


def summed(positions: Positions, scores: Scores) -> NextOpinion:
    """Scores of the same position added up; what isn't above 0 is left out."""
    if len(positions) == 0:
        return NextOpinion.none()
    order = np.argsort(positions, kind="stable")
    positions, scores = positions[order], scores[order]
    starts = np.flatnonzero(np.diff(positions, prepend=-1))
    sums = np.add.reduceat(scores, starts)
    is_for = sums > 0
    return NextOpinion(positions[starts][is_for], sums[is_for])


def allowed(positions: Positions, query: SessionQuery) -> Mask:
    """bool[k]: which of these positions the query neither filters out nor excludes."""
    keep = np.isin(positions, query.excluded, invert=True)
    if query.eligible is not None:
        keep &= query.eligible[positions]
    return keep


def answer(positions: Positions, scores: Scores, query: SessionQuery) -> NextCandidates:
    """The `query.limit` best allowed tracks; ties go to the lower position. What will be heard of them is not known.

    positions: int32[k], each once; scores: float32[k], finite
    """
    keep = np.flatnonzero(allowed(positions, query))
    if query.limit < len(keep):
        left = scores[keep]
        least = np.partition(left, len(left) - query.limit)[len(left) - query.limit] if query.limit else np.inf
        keep = keep[left >= least]
    keep = keep[np.lexsort((positions[keep], -scores[keep]))[: query.limit]]
    heard = np.full(len(keep), UNKNOWN_LISTENING, np.float32)
    return NextCandidates(positions[keep].astype(np.int32), scores[keep].astype(np.float32), heard)


def answer_of(recommender: HasOpinion, query: SessionQuery) -> NextCandidates:
    """The answer of a recommender that has nothing but an opinion."""
    return answer(*recommender.opinion(Heard.of(query, recommender.n_items)), query)
