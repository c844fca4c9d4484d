"""From a player's question to the answer: what all recommenders of the next track share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.contracts import Mask, NextCandidates, Positions, Scores, SessionQuery
from models.membership import is_among

UNKNOWN_LISTENING = 0.75
"""What is expected to be heard of a track where no fraction was ever measured; above every threshold of the rules."""
LONGEST = 30
"""Tracks of a session that anybody looks back at."""
_LIKED, _LEFT = 0.7, 0.3
"""Heard up to here a track was liked; from here down it speaks against its like."""


@dataclass(frozen=True)
class Heard:
    """What a session says, the latest track last.

    positions: int32[n], n up to LONGEST
    fractions: float32[n], NaN where nobody measured
    """

    positions: Positions
    fractions: Scores

    @cached_property
    def strengths(self) -> Scores:
        """float32[n]: 1 for what was heard (or not measured), falling below 0.7, down to -0.5 for what was skipped."""
        slope = (self.fractions - np.float32(_LEFT)) / np.float32(_LIKED - _LEFT)
        slope[np.isnan(slope)] = 1
        return np.asarray(np.minimum(np.maximum(slope, np.float32(-0.5)), np.float32(1)))

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

    def best(self, most: int) -> Positions:
        """int32[up to most]: the positions of the highest, in no order."""
        if len(self.positions) <= most:
            return self.positions
        kept = np.argpartition(self.scores, len(self.scores) - most)[len(self.scores) - most :]
        return self.positions[kept]

    def of(self, positions: Positions) -> Scores:
        """float32[m]: the scores of these positions, 0 where there is none."""
        if len(self.positions) == 0:
            return np.zeros(len(positions), np.float32)
        found = np.minimum(self.positions.searchsorted(positions), len(self.positions) - 1)
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
    positions, order = in_order(positions)
    starts = firsts(positions)
    sums = np.add.reduceat(scores[order], starts)
    is_for = sums > 0
    return NextOpinion(positions[starts][is_for], sums[is_for])


def in_order(values: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The values ascending, and what `argsort(kind="stable")` gives in a fifth of its time: numpy sorts whole numbers
    with vector instructions, so each value takes its place along in the lower half of one."""
    keys = values.astype(np.int64)
    keys <<= 32
    keys |= np.arange(len(keys))
    keys.sort()
    return (keys >> 32).astype(np.int32), keys & 0xFFFFFFFF


def firsts(ascending: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64[k]: where each value stands first."""
    is_first = np.empty(len(ascending), np.bool_)
    is_first[:1] = True
    np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
    return is_first.nonzero()[0]


def allowed(positions: Positions, query: SessionQuery) -> Mask:
    """bool[k]: which of these positions the query neither filters out nor excludes."""
    keep = np.ones(len(positions), np.bool_) if query.eligible is None else query.eligible[positions]
    if len(query.excluded):
        keep &= ~is_among(positions, query.excluded)
    return keep


def answer(positions: Positions, scores: Scores, query: SessionQuery) -> NextCandidates:
    """The `query.limit` best allowed tracks; ties go to the lower position. What will be heard of them is not known.

    positions: int32[k], each once; scores: float32[k], finite
    """
    keep = allowed(positions, query)
    return best_of(positions[keep], scores[keep], query.limit)


def best_of(positions: Positions, scores: Scores, limit: int) -> NextCandidates:
    """As `answer`, of tracks that are all allowed."""
    if limit < len(scores):
        least = np.partition(scores, len(scores) - limit)[len(scores) - limit] if limit else np.inf
        keep = scores >= least
        positions, scores = positions[keep], scores[keep]
    order = np.lexsort((positions, -scores))[:limit]
    heard = np.full(len(order), UNKNOWN_LISTENING, np.float32)
    return NextCandidates(positions[order].astype(np.int32), scores[order].astype(np.float32), heard)


def answer_of(recommender: HasOpinion, query: SessionQuery) -> NextCandidates:
    """The answer of a recommender that has nothing but an opinion."""
    return answer(*recommender.opinion(Heard.of(query, recommender.n_items)), query)
