"""Recommenders that score every item: the filter and the cut, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contracts import Candidates, Indices, Mask, Positions, Query, Reason, Scores
from models.retrieval.opinions import DenseOpinion, Opinion


class DenseRecommender(ABC):
    """Gives `recommend` to a recommender that can score all items at once.

    Right up to about 100,000 items (a 64-dimensional dot product over 10,000 takes 0.13 ms on one core);
    beyond that an index answers `recommend` behind the same Protocol.
    """

    @abstractmethod
    def scores(self, query: Query) -> Scores:
        """float32[n_items], -inf where there is no opinion."""

    @abstractmethod
    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """One reason for each position."""

    def recommend(self, query: Query) -> Candidates:
        return best(self.scores(query), query)

    def opinion(self, query: Query) -> Opinion | None:
        """See `Source.opinion`."""
        scores = self.scores(query)
        return DenseOpinion(self, query, scores) if np.isfinite(scores).any() else None  # type: ignore[arg-type]

    def rows_of(self, positions: Indices) -> NDArray[Any]:
        """See `Source.rows_of`."""
        return positions

    def offsets(self) -> Scores:
        """See `Source.offsets`."""
        return np.zeros(self.n_items, np.float32)

    @property
    @abstractmethod
    def n_items(self) -> int:
        """Positions it can speak of."""


def best(scores: Scores, query: Query) -> Candidates:
    """The `query.limit` highest finite scores that the query allows; ties go to the lower position."""
    allowed = allowed_scores(scores, query)
    found = np.flatnonzero(np.isfinite(allowed))
    if query.limit < len(found):
        finite = allowed[found]
        threshold = np.partition(finite, -query.limit)[-query.limit] if query.limit else np.inf
        found = found[finite >= threshold]
    order = np.argsort(-allowed[found], kind="stable")[: query.limit]
    positions = found[order].astype(np.int32)
    return Candidates(positions, allowed[positions].astype(np.float32))


def best_among(positions: Positions, scores: Scores, limit: int) -> Candidates:
    """The highest of some items' scores; ties go to the lower position.

    positions: int32[k], none of them twice; scores: float32[k], of these
    """
    if limit < len(scores):
        least = np.partition(scores, len(scores) - limit)[len(scores) - limit] if limit else np.inf
        chosen = (scores >= least).nonzero()[0]
        positions, scores = positions[chosen], scores[chosen]
    order = np.lexsort((positions, -scores))[:limit]
    return Candidates(positions[order], scores[order])


def is_allowed(query: Query, n: int) -> Mask:
    """bool[n]: the items that the query neither filters out nor excludes."""
    allowed = np.ones(n, np.bool_) if query.eligible is None else query.eligible[:n].copy()
    allowed[query.excluded[query.excluded < n]] = False
    return allowed


def allowed_scores(scores: Scores, query: Query) -> Scores:
    """The scores with -inf where the query forbids the item; the caller's array is left as it was.

    A filter may speak of items that arrived after this recommender was built: those are ignored.
    """
    if query.eligible is None:
        allowed = scores.copy()
    else:
        allowed = np.where(query.eligible[: len(scores)], scores, np.float32(-np.inf))
    allowed[query.excluded[query.excluded < len(scores)]] = -np.inf
    return allowed
