"""Content profile: items like those that the user met last, by genres, tags, words, creator and time.

The oldest way to recommend without anybody else's behaviour (Pazzani and Billsus, "Content-based recommendation
systems", 2007): the user is the mean of their items' content vectors, an item's score is its cosine with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from models.contracts import Arrays, History, Indices, Parameters, Parts, Positions, Progress, Query, Reason, Scores
from models.data.terms import unit_rows
from models.retrieval.dense import DenseRecommender
from models.retrieval.inverted_lists import InvertedLists
from models.retrieval.item_rows import ItemRows, cosines
from models.retrieval.opinions import FEWEST_LISTED, NOMINEES, highest, nominees_among

RECENCY = 2.0
"""Items after which one counts half: what comes next resembles the last item more than taste in general."""
LONGEST_HISTORY = 20
_RECENCIES = 0.5 ** (np.arange(LONGEST_HISTORY - 1, -1, -1) / RECENCY)


@dataclass(frozen=True)
class ContentProfile(DenseRecommender):
    """Built by `fit_content_profile` or `from_parts`.

    rows:  float32[d] of length 1 per item, zeros where nothing is known of it
    lists: of the fitted items of which something is known; None where there are few
    """

    name: ClassVar[str] = "content_profile"
    rows: ItemRows
    lists: InvertedLists | None = None

    @property
    def n_items(self) -> int:
        return len(self.rows)

    def scores(self, query: Query) -> Scores:
        """Cosines; -inf for everything where no item of the history says anything."""
        profile = self._profile(query.history)
        if not profile.any():
            return np.full(self.n_items, -np.inf, np.float32)
        return self.rows.dot(profile)

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """The liked item of the history that is most alike; the rest of it shapes the taste, but is not named."""
        latest = self._latest(query.history.take(query.history.signs > 0))
        if len(latest) == 0:
            return [Reason("similar_to_liked")] * len(positions)
        nearest = (self.rows.take(positions) @ self.rows.take(latest).T).argmax(axis=1)
        return [Reason("similar_to_liked", seed) for seed in latest[nearest].tolist()]

    def opinion(self, query: Query) -> ProfileOpinion | None:
        profile = self._profile(query.history)
        return ProfileOpinion(self, query, profile) if profile.any() else None

    def rows_of(self, positions: Indices) -> Scores:
        return self.rows.take(positions)

    def similar(self, position: int) -> Scores:
        """float32[n_items]: cosine of the content."""
        return cosines(self.rows, position)

    def with_new_items(self, content: Scores) -> Self:
        return replace(self, rows=self.rows.with_added(unit_rows(content)))

    def parts(self) -> Parts:
        lists = {} if self.lists is None else {f"lists.{name}": array for name, array in self.lists.parts().items()}
        return Parts({}, {"rows": self.rows.fitted} | lists)

    @classmethod
    def from_parts(cls, _: Parameters, arrays: Arrays) -> Self:
        return cls(ItemRows.of(arrays["rows"]), InvertedLists.among(arrays))

    def listed(self, *, seed: int) -> Self:
        """A copy that finds the best of many items without looking at all of them."""
        known = np.flatnonzero(self.rows.fitted.any(axis=1)).astype(np.int32)
        if len(known) < FEWEST_LISTED:
            return self
        return replace(self, lists=InvertedLists.of(self.rows.fitted[known], known, seed=seed))

    def _latest(self, history: History) -> Positions:
        """Known items that were not disliked, oldest first."""
        kept = (history.positions < self.n_items) & (history.signs >= 0)
        return history.positions[kept][-LONGEST_HISTORY:]

    def _profile(self, history: History) -> Scores:
        latest = self._latest(history)
        profile = _RECENCIES[LONGEST_HISTORY - len(latest) :] @ self.rows.take(latest)
        length = math.sqrt(float(profile @ profile))
        return np.asarray(profile / length if length > 0 else profile, np.float32)


@dataclass(frozen=True, slots=True)
class ProfileOpinion:
    """See `Opinion`. profile: float32[d] of length 1"""

    recommender: ContentProfile
    query: Query
    profile: Scores

    @property
    def nbytes(self) -> int:
        return self.profile.nbytes

    def nominees(self) -> Positions:
        lists, rows = self.recommender.lists, self.recommender.rows
        if lists is None:
            return highest(rows.dot(self.profile), NOMINEES)
        return nominees_among(lists, self.profile, first_new=len(rows.fitted), new_scores=rows.added @ self.profile)

    def scores(self, rows: Scores) -> Scores:
        # See AlsOpinion.
        return np.asarray(np.vecdot(rows, self.profile))

    def reasons(self, positions: Positions) -> list[Reason]:
        return self.recommender.reasons(self.query, positions)


def fit_content_profile(content: Scores, *, seed: int = 0, progress: Progress) -> ContentProfile:
    """content: float32[n_items, d], rows of `ContentEncoder.transform`."""
    fitted = ContentProfile(ItemRows.of(unit_rows(content))).listed(seed=seed)
    progress("content_profile: done", 1.0)
    return fitted
