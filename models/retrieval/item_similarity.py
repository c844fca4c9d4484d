"""Item similarity: what people who met this item also met, learned in closed form.

EASE of Steck, "Embarrassingly shallow autoencoders for sparse data" (2019): B = I - P · diag(P)⁻¹ with
P = (XᵀX + λI)⁻¹. Interactions may fade with age, in the fit and in the history, so that B follows the trend.
Dense only while it is computed, for a bounded number of items; of each row the strongest entries are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from models.contracts import (
    Arrays,
    History,
    Indices,
    Mask,
    Parameters,
    Parts,
    Positions,
    Progress,
    Query,
    Reason,
    Scores,
)
from models.data.dataset import Dataset
from models.retrieval.dense import DenseRecommender
from models.retrieval.opinions import NOMINEES, highest
from models.retrieval.tuning import HeldOut, hold_out_newest, ndcg

MOST_ITEMS = 3_000
"""The most interacted items that are compared; time grows with the cube: 3,000 take 2 s on one core."""
NEIGHBOURS = 200
"""Entries stored of each row: 100, 200 and all 3,000 rank within 0.001 NDCG@10 of each other there."""
LONGEST_HISTORY = 500

_CHOSEN_ON_ITEMS = 1_500
_CHOSEN_ON_USERS = 600
_REGULARIZATIONS = (500.0, 100.0)
_HALF_LIVES = (None, 90.0, 30.0)
"""Shorter ones rank better alone (7 days: NDCG@10 0.115 on held-out MovieTweetings, 30 days 0.090, none 0.056) by
turning into a list of what is popular, which leaves the blend less to learn from them than 30 days do."""
_DAY = 86_400.0


@dataclass(frozen=True)
class ItemSimilarity(DenseRecommender):
    """Built by `fit_item_similarity` or `from_parts`.

    items:      int32[k], ascending positions of the items compared
    neighbours: int32[k, t], positions; row i belongs to items[i]
    strengths:  float32[k, t], what having met the row's item adds to the neighbour's score
    half_life:  days after which an entry of the history counts half, or None
    """

    name: ClassVar[str] = "item_similarity"
    items: Positions
    neighbours: Positions
    strengths: Scores
    half_life: float | None
    n_fitted: int
    chosen: Parameters
    n_new: int = 0

    @property
    def n_items(self) -> int:
        return self.n_fitted + self.n_new

    def scores(self, query: Query) -> Scores:
        """Sums of strengths over the history; -inf for items that none of it leads to."""
        rows, weights = self._met(query.history, query.at)
        neighbours = self.neighbours[rows].ravel()
        strengths = (weights[:, None] * self.strengths[rows]).ravel()
        sums = np.bincount(neighbours, strengths, minlength=self.n_items).astype(np.float32)
        sums[sums == 0] = -np.inf
        return sums

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """`similar_to_liked`, with the liked item that adds most to the score."""
        liked = query.history.take(query.history.signs > 0)
        rows, weights = self._met(liked, query.at)
        if len(rows) == 0:
            return [Reason("similar_to_liked")] * len(positions)
        neighbours, strengths = self.neighbours[rows], weights[:, None] * self.strengths[rows]
        return [Reason("similar_to_liked", self._strongest_seed(rows, neighbours == p, strengths)) for p in positions]

    def _strongest_seed(self, rows: NDArray[np.int64], leads: Mask, strengths: Scores) -> int | None:
        """The item of these rows that adds most, where it adds anything. leads, strengths: [len(rows), t]"""
        met, columns = leads.nonzero()
        if not len(met):
            return None
        added = strengths[met, columns]
        most = int(added.argmax())
        return int(self.items[rows[met[most]]]) if added[most] > 0 else None

    def opinion(self, query: Query) -> EaseOpinion | None:
        rows, weights = self._met(query.history, query.at)
        return EaseOpinion.of(self, query, rows, weights) if len(rows) else None

    def rows_of(self, positions: Indices) -> NDArray[np.int32]:
        """int32[k]: the rows of `items` that the positions have, `len(items)` for those that are not compared."""
        return self._row_of_position.take(positions)

    @cached_property
    def _row_of_position(self) -> NDArray[np.int32]:
        rows = np.full(self.n_items, len(self.items), np.int32)
        rows[self.items] = np.arange(len(self.items))
        return rows

    @cached_property
    def _rows_of_neighbours(self) -> NDArray[np.int32]:
        """int32[k, t]"""
        return self._row_of_position[self.neighbours]

    def similar(self, position: int) -> Scores:
        """float32[n_items]: what having met the item adds to each; -inf for all but its neighbours."""
        similarities = np.full(self.n_items, -np.inf, np.float32)
        row = int(np.searchsorted(self.items, position))
        if row < len(self.items) and self.items[row] == position:
            similarities[self.neighbours[row]] = self.strengths[row]
            similarities[position] = -np.inf
        return similarities

    def with_new_items(self, content: Scores) -> Self:
        return replace(self, n_new=len(content))

    def parts(self) -> Parts:
        parameters = {"half_life": self.half_life, "n_fitted": self.n_fitted, "chosen": dict(self.chosen)}
        arrays: dict[str, NDArray[Any]] = {
            "items": self.items, "neighbours": self.neighbours, "strengths": self.strengths,
        }  # fmt: skip
        return Parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        return cls(
            items=arrays["items"],
            neighbours=arrays["neighbours"],
            strengths=arrays["strengths"],
            half_life=parameters["half_life"],
            n_fitted=parameters["n_fitted"],
            chosen=parameters["chosen"],
        )

    def _met(self, history: History, at: float) -> tuple[NDArray[np.int64], Scores]:
        """Rows of the newest items of the history that were not disliked, and what each of them counts."""
        if len(self.items) == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        rows = np.minimum(np.searchsorted(self.items, history.positions), len(self.items) - 1)
        counts = (self.items[rows] == history.positions) & (history.signs >= 0)
        which = np.flatnonzero(counts)[-LONGEST_HISTORY:]
        return rows[which], _recency(history.timestamps[which], at, self.half_life)


@dataclass(frozen=True, slots=True)
class EaseOpinion:
    """See `Opinion`. sums: float32[len(items) + 1], of strengths over the history; 0 for the last, which is none."""

    recommender: ItemSimilarity
    query: Query
    sums: Scores

    @property
    def nbytes(self) -> int:
        return self.sums.nbytes

    @classmethod
    def of(cls, recommender: ItemSimilarity, query: Query, rows: NDArray[np.int64], weights: Scores) -> Self:
        strengths = recommender.strengths.take(rows, axis=0)
        strengths *= weights[:, None]
        neighbours = recommender._rows_of_neighbours.take(rows, axis=0)
        sums = np.bincount(neighbours.ravel(), strengths.ravel(), minlength=len(recommender.items) + 1)
        return cls(recommender, query, sums.astype(np.float32))

    def nominees(self) -> Positions:
        rows = highest(self.sums[:-1], NOMINEES)
        return self.recommender.items[rows[self.sums[rows] > 0]]

    def scores(self, rows: NDArray[np.int32]) -> Scores:
        return self.sums.take(rows)

    def reasons(self, positions: Positions) -> list[Reason]:
        return self.recommender.reasons(self.query, positions)


def fit_item_similarity(
    dataset: Dataset,
    *,
    seed: int,
    progress: Progress,
    most_items: int = MOST_ITEMS,
    neighbours: int = NEIGHBOURS,
) -> ItemSimilarity:
    """Choose λ and the half-life on the newest part of the dataset, then fit on all of it."""
    progress("item_similarity: choosing how fast history fades", 0.0)
    held_out = hold_out_newest(dataset, seed=seed)
    chosen = _choose(held_out, neighbours) if held_out.is_telling else (_REGULARIZATIONS[0], None)
    progress("item_similarity: comparing items", 0.5)
    fitted = fit_ease(dataset, *chosen, most_items=most_items, neighbours=neighbours)
    progress("item_similarity: done", 1.0)
    return fitted


def refit_item_similarity(like: ItemSimilarity, dataset: Dataset) -> ItemSimilarity:
    """Fit other data by the choices of one fitted before."""
    return fit_ease(
        dataset, like.chosen["regularization"], like.half_life, most_items=MOST_ITEMS, neighbours=NEIGHBOURS
    )


def _choose(held_out: HeldOut, neighbours: int) -> tuple[float, float | None]:
    options = [(regularization, half_life) for half_life in _HALF_LIVES for regularization in _REGULARIZATIONS]
    found = [
        _mean_ndcg(fit_ease(held_out.earlier, *option, most_items=_CHOSEN_ON_ITEMS, neighbours=neighbours), held_out)
        for option in options
    ]
    return options[int(np.argmax(found))]


def _mean_ndcg(fitted: ItemSimilarity, held_out: HeldOut) -> float:
    gained = 0.0
    cases = held_out.cases[:_CHOSEN_ON_USERS]
    for history, targets in cases:
        scores = fitted.scores(Query(limit=10, at=held_out.earlier.ends_at, history=history))
        scores[history.positions] = -np.inf
        gained += float(ndcg(scores[None, :], targets)[0])
    return gained / len(cases)


def fit_ease(
    dataset: Dataset, regularization: float, half_life: float | None, *, most_items: int, neighbours: int
) -> ItemSimilarity:
    """Compares the `most_items` items that most users met, at least two each."""
    met = _met_matrix(dataset, half_life)
    counts = np.bincount(met.indices, minlength=dataset.n_items)
    items = np.sort(np.argsort(-counts, kind="stable")[:most_items])
    items = items[counts[items] > 1]
    weights = ease(met[:, items], regularization) if len(items) else np.zeros((0, 0), np.float32)
    columns, strengths = strongest(weights, neighbours)
    chosen = {"regularization": regularization, "half_life": half_life}
    return ItemSimilarity(
        items=items.astype(np.int32),
        neighbours=items[columns].astype(np.int32),
        strengths=strengths,
        half_life=half_life,
        n_fitted=dataset.n_items,
        chosen=chosen,
    )


def _met_matrix(dataset: Dataset, half_life: float | None) -> sparse.csr_array:
    """float32[n_users, n_items]: the root of each entry's recency, so that XᵀX fades with the pair's mean age."""
    interactions = dataset.interactions
    recency = _recency(interactions.timestamps, dataset.ends_at, half_life)
    matrix = dataset.matrix(np.where(interactions.signs >= 0, np.sqrt(recency), 0).astype(np.float32))
    matrix.eliminate_zeros()
    return matrix


def _recency(timestamps: NDArray[np.float64], at: float, half_life: float | None) -> Scores:
    """float32[n] in (0, 1]; what is dated after `at` counts as of then."""
    if half_life is None:
        return np.ones(len(timestamps), np.float32)
    days = np.maximum(at - timestamps, 0) / _DAY
    return np.exp2(-np.minimum(days / half_life, 60)).astype(np.float32)


def ease(met: sparse.csr_array, regularization: float) -> Scores:
    """float32[k, k] item weights, zero on the diagonal; X is float32[users, k]. One Cholesky inversion."""
    gram = (met.T @ met).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += np.float32(regularization)
    factor, failed = lapack.spotrf(gram, overwrite_a=True)
    inverse, failed_too = lapack.spotri(factor, overwrite_c=True)
    if failed or failed_too:
        raise ValueError(f"item similarity: λ = {regularization} is too small for these interactions")
    inverse = np.triu(inverse) + np.triu(inverse, 1).T
    weights = -inverse / np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0
    return np.asarray(weights, np.float32)


def strongest(weights: Scores, most: int) -> tuple[NDArray[np.int64], Scores]:
    """Columns and values, [k, t], of each row's entries furthest from zero; strongest first."""
    t = min(most, weights.shape[1])
    if t == 0:
        return np.zeros((len(weights), 0), np.int64), np.zeros((len(weights), 0), np.float32)
    columns = np.argpartition(-np.abs(weights), t - 1, axis=1)[:, :t]
    values = np.take_along_axis(weights, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)
