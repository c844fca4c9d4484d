"""What a source thinks of a few items for one user, without looking at all the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.contracts import Indices, Positions, Query, Reason, Recommender, Scores
from models.retrieval.inverted_lists import InvertedLists

NOMINEES = 100
"""Items that a source names as its best."""
NOMINATING_ROWS = 1_500
"""Items looked at for them: of ten thousand films they hold all of the best ten and 88 of the best hundred, of the
million of benchmarks/large_catalogue 90 of the best hundred."""
FEWEST_LISTED = 2_000
"""Items below which to look at all of them takes no longer."""


class Opinion(Protocol):
    """One source's, about one query. Immutable."""

    @property
    def nbytes(self) -> int:
        """Of the arrays that are this opinion's alone."""

    def nominees(self) -> Positions:
        """Some of the source's best items, about NOMINEES; perhaps not quite the best, in any order."""

    def scores(self, rows: NDArray[Any]) -> Scores:
        """float32[k], of the items that `Source.rows_of` gave the rows of; their `Source.offsets` left out. An item's
        is the same to the last bit whatever is asked for beside it."""

    def reasons(self, positions: Positions) -> list[Reason]:
        """One reason for each position."""


@runtime_checkable
class Source(Recommender, Protocol):
    """A recommender that the blend can ask about candidates alone."""

    def opinion(self, query: Query) -> Opinion | None:
        """None where the source has nothing to say to this user."""

    def rows_of(self, positions: Indices) -> NDArray[Any]:
        """k rows: what an opinion needs of these items. The same for all users, so they may be kept."""

    def offsets(self) -> Scores:
        """float32[n_items]: what is added to every user's scores."""


def sources_among(fitted: Mapping[str, Recommender], names: Sequence[str]) -> dict[str, Source]:
    """Raises KeyError where one is missing, TypeError where one can't be asked about candidates alone."""
    found: dict[str, Source] = {}
    for name in names:
        source = fitted[name]
        if not isinstance(source, Source):
            raise TypeError(f"{name!r} gives no opinions, so it can't be a source of the blend")
        found[name] = source
    return found


@dataclass(frozen=True, slots=True)
class DenseOpinion:
    """Of a recommender that scores all items anyway.

    all_scores: float32[n_items], -inf for no opinion
    """

    source: Recommender
    query: Query
    all_scores: Scores

    @property
    def nbytes(self) -> int:
        return self.all_scores.nbytes

    def nominees(self) -> Positions:
        return highest(self.all_scores, NOMINEES)

    def scores(self, rows: NDArray[Any]) -> Scores:
        found = self.all_scores[rows]
        return np.where(np.isfinite(found), found, np.float32(0))

    def reasons(self, positions: Positions) -> list[Reason]:
        return self.source.reasons(self.query, positions)


def nominees_among(lists: InvertedLists, vector: Scores, *, first_new: int, new_scores: Scores) -> Positions:
    """The best of what is near in the lists and of the items that arrived since, which are in none.

    first_new: position of the first item that arrived since; new_scores: float32[m], theirs
    """
    positions, scores = lists.near(vector, NOMINATING_ROWS)
    if len(new_scores):
        arrived = np.arange(first_new, first_new + len(new_scores), dtype=np.int32)
        positions, scores = np.concatenate([positions, arrived]), np.concatenate([scores, new_scores])
    if len(positions) > NOMINEES:
        return positions[np.argpartition(scores, len(scores) - NOMINEES)[len(scores) - NOMINEES :]]
    return positions


def highest(scores: Scores, most: int) -> Positions:
    """int32[≤ most]: where the highest finite scores are, in any order."""
    if len(scores) > most:
        found = np.argpartition(scores, len(scores) - most)[len(scores) - most :]
    else:
        found = np.arange(len(scores))
    return found[np.isfinite(scores[found])].astype(np.int32)
