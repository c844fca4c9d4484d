"""From a player's question to the answer: what all recommenders of the next track share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.contracts import Mask, NextCandidates, Positions, Scores, SessionQuery
from models.membership import is_among

UNKNOWN_LISTENING = 0.75
"""What is expected to be heard of a track where no fraction was ever measured; above every threshold of the rules."""
LONGEST = 30
"""Tracks of a session that anybody looks back at."""
_TINY = 1e-30
_FEW = 8
"""Up to so many times as many scores as are wanted are sorted as they are, without leaving out the low ones first."""
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
        slope = self.fractions - np.float32(_LEFT)
        slope *= np.float32(1 / (_LIKED - _LEFT))
        # Of a number and NaN fmin takes the number.
        np.fmin(slope, np.float32(1), out=slope)
        return np.asarray(np.maximum(slope, np.float32(-0.5), out=slope))

    @classmethod
    def of(cls, query: SessionQuery, n_items: int) -> Heard:
        """The latest tracks that a recommender of `n_items` knows."""
        positions, fractions = query.positions[-LONGEST:], query.fractions[-LONGEST:]
        # Read without its sign a negative number is a high one.
        if positions.view(np.uint32).max(initial=0) < n_items:
            return cls(positions, fractions)
        is_known = (query.positions >= 0) & (query.positions < n_items)
        return cls(query.positions[is_known][-LONGEST:], query.fractions[is_known][-LONGEST:])


class Claims(NamedTuple):
    """What one recommender says of the next track, piece by piece.

    positions: int32[n], each as often as something speaks for it or against it
    scores:    float32[n] or float64[n], below 0 where it speaks against
    """

    positions: Positions
    scores: NDArray[np.floating[Any]]

    @classmethod
    def none(cls) -> Claims:
        return cls(np.empty(0, np.int32), np.empty(0, np.float32))


class Tally(NamedTuple):
    """What several recommenders say, added up.

    positions: int32[p], ascending, each once: whatever anybody named
    scores:    float64[s, p], what each says of them in all; 0 where it says nothing, or more against than for
    """

    positions: Positions
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, claims: Sequence[Claims], n_items: int) -> Tally:
        """Adds up by counting in a row of cells for each recommender: sorting takes three times as long."""
        positions = np.concatenate([each.positions for each in claims], dtype=np.intp)
        # Only cells that are written to are ever read.
        cells, numbers = np.empty(n_items, np.int32), np.arange(len(positions), dtype=np.int32)
        cells[positions] = numbers
        named = positions.compress(cells[positions] == numbers)
        named.sort()
        k = len(named)
        cells[named] = numbers[:k]
        cell = cells[positions]
        start = len(claims[0].positions)
        for row, each in enumerate(claims[1:], 1):
            cell[start : start + len(each.positions)] += row * k
            start += len(each.positions)
        weights = np.concatenate([each.scores for each in claims], dtype=np.float64)
        scores = np.bincount(cell, weights, len(claims) * k).reshape(len(claims), k)
        return cls(named.astype(np.int32), np.maximum(scores, 0, out=scores))

    def best(self, most: int) -> NDArray[np.int64]:
        """int64[k], ascending: places in `positions` of the `most` highest of each; more where the last are equal."""
        if len(self.positions) <= most:
            is_best = self.scores > 0
        else:
            ascending = self.scores.copy()
            ascending.partition(-most, axis=1)
            is_best = self.scores >= np.maximum(ascending[:, -most, None], _TINY)
        places: NDArray[np.int64] = np.logical_or.reduce(is_best, axis=0).nonzero()[0]
        return places


class NextOpinion(NamedTuple):
    """What one recommender thinks of the tracks that it has met after such a session.

    positions: int32[k], ascending, each once
    scores:    float32[k], positive; tracks that are not named have none
    """

    positions: Positions
    scores: Scores

    @classmethod
    def of(cls, claims: Claims, n_items: int) -> NextOpinion:
        positions, (scores,) = Tally.of([claims], n_items)
        is_for = scores > 0
        return cls(positions[is_for], scores[is_for].astype(np.float32))


class MakesClaims(Protocol):
    """A recommender that says little of a session: it names some hundreds or thousands of tracks."""

    @property
    def n_items(self) -> int: ...

    def claims(self, heard: Heard) -> Claims: ...


def firsts(ascending: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
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

    positions: int32[k], ascending, each once; scores: float32[k], finite
    """
    keep = allowed(positions, query)
    return best_of(positions[keep], scores[keep], query.limit)


def best_of(positions: Positions, scores: Scores, limit: int) -> NextCandidates:
    """As `answer`, of tracks that are all allowed."""
    if limit < len(scores) // _FEW:
        least = np.partition(scores, len(scores) - limit)[len(scores) - limit] if limit else np.inf
        keep = scores >= least
        positions, scores = positions[keep], scores[keep]
    order = (-scores).argsort(kind="stable")[:limit]
    heard = np.full(len(order), UNKNOWN_LISTENING, np.float32)
    return NextCandidates(positions.take(order).astype(np.int32), scores.take(order), heard)


def answer_of(recommender: MakesClaims, query: SessionQuery) -> NextCandidates:
    """The answer of a recommender that has nothing but claims."""
    claims = recommender.claims(Heard.of(query, recommender.n_items))
    return answer(*NextOpinion.of(claims, recommender.n_items), query)
