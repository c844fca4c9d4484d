"""Taste from factors and content together: implicit ALS whose items have a vector before anyone touched them.

The factors are those of Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets" (2008).
A ridge regression from content to factors gives new items theirs (Gantner et al., "Learning attribute-to-feature
mappings for cold-start recommendations", 2010). An item's vector is factors ⊕ scaled content; a user's is a fold-in
⊕ a content profile, both made from the history at request time, so that a like counts on the next request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg.lapack import dposv
from threadpoolctl import threadpool_limits

from models.contracts import (
    Arrays,
    Candidates,
    History,
    Indices,
    Parameters,
    Parts,
    Positions,
    Progress,
    Query,
    Reason,
    Scores,
)
from models.data.dataset import Dataset, latest_per_pair
from models.membership import is_among
from models.retrieval.content_map import ContentMap, fit_content_map
from models.retrieval.dense import DenseRecommender, best_among
from models.retrieval.inverted_lists import InvertedLists
from models.retrieval.item_rows import ItemRows, cosines
from models.retrieval.opinions import FEWEST_LISTED, NOMINEES, highest, nominees_among
from models.retrieval.popularity_kinds import choose_kind
from models.retrieval.tuning import DEFAULT_TREND_WEIGHT, Mix, Trial, choose_mix, hold_out_in_turn

FACTORS = 32
ITERATIONS = 15
REGULARIZATION = 30.0
ALPHA = 10.0
"""Confidence of a plain like against 1 for an item never met (Hu et al., section 4)."""
LONGEST_HISTORY = 500
CONCESSION = 0.01
"""What the choice of weights may give up for less trend: differences below it are chance."""
FEWEST_SEARCHED = 100_000
"""Items from which on the best are searched for in lists: of fewer all are scored, and none is missed."""
RECENCY = 10.0
"""Entries after which a liked item counts half in the content profile."""


class Confidence(NamedTuple):
    """How sure an interaction makes us: c = ALPHA · strength, p = 0 for dislikes.

    graded: whether the strength follows the feedback's weight, or is the same for all
    """

    graded: bool

    def of(self, weights: Scores, signs: NDArray[np.int8]) -> Scores:
        """float32[n], negative for dislikes: |c| stays ≥ 1, below which the system may not be definite."""
        sizes = np.abs(weights)
        strength = np.minimum(np.maximum(0.5 + 0.5 * sizes, 0.1), 5.0) if self.graded else np.ones(len(weights))
        confidence = np.maximum(ALPHA * np.where(signs < 0, 0.5 * sizes, strength), 1.0)
        return np.asarray(np.where((signs < 0) & (sizes > 0), -confidence, confidence), np.float32)


@dataclass(frozen=True)
class AlsHybrid(DenseRecommender):
    """Built by `fit_als_hybrid` or `from_parts`.

    vectors:        rows of float32[f + p], factors ⊕ content
    prior:          float32[n + m] added to every score: the weighted trend, -inf where nothing is known of the item
    gramian:        float64[f, f], FᵀF + λI
    content_weight: what a content cosine of 1 adds to a score
    lists:          of the fitted items' vectors, each with its prior behind it, less the usual one, over
                    `prior_scale`; None where there are few
    """

    name: ClassVar[str] = "als_hybrid"
    vectors: ItemRows
    prior: Scores
    gramian: NDArray[np.float64]
    content_map: ContentMap
    confidence: Confidence
    content_weight: float
    chosen: Parameters
    lists: InvertedLists | None = None
    prior_scale: float = 1.0

    @property
    def n_items(self) -> int:
        return len(self.vectors)

    def scores(self, query: Query) -> Scores:
        history = known_part(query.history, self.n_items)
        if len(history) == 0:
            return np.full(self.n_items, -np.inf, np.float32)
        return np.asarray(self.vectors.dot(self.user_vector(history)) + self.prior)

    def recommend(self, query: Query) -> Candidates:
        """Of many items nearly always the best, found without looking at all of them; exactly these of others."""
        opinion = self.opinion(query)
        if opinion is None or self.lists is None or len(self.lists) < FEWEST_SEARCHED:
            return super().recommend(query)
        return best_among(*opinion.best(query), query.limit)

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """`similar_to_liked` where content speaks louder than the factors, `taste` elsewhere."""
        opinion = self.opinion(query)
        return [Reason("taste")] * len(positions) if opinion is None else opinion.reasons(positions)

    def opinion(self, query: Query) -> AlsOpinion | None:
        history = known_part(query.history, self.n_items)
        return AlsOpinion(self, history, self.user_vector(history)) if len(history) else None

    def rows_of(self, positions: Indices) -> Scores:
        return self.vectors.take(positions)

    def offsets(self) -> Scores:
        return np.where(np.isfinite(self.prior), self.prior, np.float32(0))

    def similar(self, position: int) -> Scores:
        """float32[n_items]: cosine of the item vectors: of much-used items mostly factors, of others content."""
        return cosines(self.vectors, position)

    def with_new_items(self, content: Scores) -> Self:
        added = self.content_map.vectors(content)
        prior = np.where(added.any(axis=1), 0, -np.inf)
        fitted = self.prior[: len(self.vectors.fitted)]
        return replace(
            self,
            vectors=self.vectors.with_added(added),
            prior=np.concatenate([fitted, prior]).astype(np.float32),
        )

    def parts(self) -> Parts:
        arrays: dict[str, NDArray[Any]] = {
            "vectors": self.vectors.fitted,
            "prior": self.prior[: len(self.vectors.fitted)],
            "gramian": self.gramian,
            "to_factors": self.content_map.to_factors,
            "to_content": self.content_map.to_content,
        }
        if self.lists is not None:
            arrays |= {f"lists.{name}": array for name, array in self.lists.parts().items()}
        parameters = {
            "scale": self.content_map.scale,
            "graded": self.confidence.graded,
            "content_weight": self.content_weight,
            "chosen": dict(self.chosen),
            "prior_scale": self.prior_scale,
        }
        return Parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        return cls(
            vectors=ItemRows.of(arrays["vectors"]),
            prior=arrays["prior"],
            gramian=arrays["gramian"],
            content_map=ContentMap(arrays["to_factors"], arrays["to_content"], parameters["scale"]),
            confidence=Confidence(parameters["graded"]),
            content_weight=parameters["content_weight"],
            chosen=parameters["chosen"],
            lists=InvertedLists.among(arrays),
            prior_scale=parameters.get("prior_scale", 1.0),
        )

    def listed(self, *, seed: int) -> Self:
        """A copy that finds the best of many items without looking at all of them."""
        known = np.flatnonzero(np.isfinite(self.prior[: len(self.vectors.fitted)])).astype(np.int32)
        if len(known) < FEWEST_LISTED:
            return self
        rows, prior = self.vectors.fitted[known], self.prior[known]
        # On the scale of the other coordinates: lists go by lengths and angles, which would tell of little else.
        scale = max(float(prior.std()) / max(float(np.sqrt(np.mean(rows * rows))), 1e-12), 1e-6)
        scaled = (prior - np.float32(self._usual_prior)) / np.float32(scale)
        lists = InvertedLists.of(np.column_stack([rows, scaled]), known, seed=seed)
        return replace(self, lists=lists, prior_scale=scale)

    @cached_property
    def _usual_prior(self) -> float:
        fitted = self.prior[: len(self.vectors.fitted)]
        return float(fitted[np.isfinite(fitted)].mean(dtype=np.float64)) if np.isfinite(fitted).any() else 0.0

    def user_vector(self, history: History) -> Scores:
        """float32[f + p]: what the items of a history (see `known_part`) say of their user."""
        rows, f = self.vectors.take(history.positions), len(self.gramian)
        factors = fold_in(rows[:, :f], self.confidence.of(history.weights, history.signs), self.gramian)
        # Content rows have the length `scale`: divided out, a cosine of 1 adds the weight.
        profile = content_profile(rows[:, f:], history) * (self.content_weight / self.content_map.scale)
        return np.concatenate([factors, profile]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class AlsOpinion:
    """See `Opinion`. user: float32[f + p], `AlsHybrid.user_vector` of the history"""

    recommender: AlsHybrid
    history: History
    user: Scores

    @property
    def nbytes(self) -> int:
        return self.user.nbytes

    def nominees(self) -> Positions:
        als = self.recommender
        if als.lists is None:
            return highest(als.vectors.dot(self.user) + als.prior, NOMINEES)
        n = len(als.vectors.fitted)
        new_scores = als.vectors.added @ self.user + (als.prior[n:] - np.float32(als._usual_prior))
        return nominees_among(als.lists, self._listed, first_new=n, new_scores=new_scores)

    @property
    def _listed(self) -> Scores:
        """float32[f + p + 1]: the user as the lists compare them."""
        return np.append(self.user, np.float32(self.recommender.prior_scale))

    def best(self, query: Query) -> tuple[Positions, Scores]:
        """Positions and scores in any order: nearly all that the query asks for, and others that it allows.

        Only where there are lists.
        """
        als, n = self.recommender, len(self.recommender.vectors.fitted)
        eligible = None if query.eligible is None else query.eligible[: als.n_items]
        if als.lists is None:
            raise ValueError("nothing is listed; ask for the scores of all")
        positions, scores = als.lists.best(
            self._listed, query.limit, allowed=None if eligible is None else eligible[:n], excluded=query.excluded
        )
        scores += np.float32(als._usual_prior)
        arrived = n + np.isfinite(als.prior[n:]).nonzero()[0].astype(np.int32)
        arrived = arrived[~is_among(arrived, query.excluded)]
        if eligible is not None:
            arrived = arrived[eligible[arrived]]
        new_scores = als.vectors.added[arrived - n] @ self.user + als.prior[arrived]
        return np.concatenate([positions, arrived]), np.concatenate([scores, new_scores])

    def scores(self, rows: Scores) -> Scores:
        # Row by row: in `rows @ user` the last bit depends on what stands beside.
        return np.asarray(np.vecdot(rows, self.user))

    def reasons(self, positions: Positions) -> list[Reason]:
        liked = self.history.liked
        if len(liked) == 0:
            return [Reason("taste")] * len(positions)
        vectors, f = self.recommender.vectors, len(self.recommender.gramian)
        rows, user = vectors.take(positions), self.user
        by_content = rows[:, f:] @ user[f:] > rows[:, :f] @ user[:f]
        nearest = liked[(rows[:, f:] @ vectors.take(liked)[:, f:].T).argmax(axis=1)]
        return [
            Reason("similar_to_liked", seed) if louder else Reason("taste")
            for louder, seed in zip(by_content.tolist(), nearest.tolist(), strict=True)
        ]


def fold_in(rows: Scores, confidence: Scores, gramian: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[f]: the user's factors, x = (FᵀF + λI + Fᵤᵀ(C - I)Fᵤ)⁻¹ Fᵤᵀ C p, by one Cholesky solve.

    rows:       float32[k, f], factors of the items met
    confidence: float32[k], negative where p = 0
    """
    met = rows.astype(np.float64)
    system = gramian + (met.T * (np.abs(confidence) - 1)) @ met
    _, solution, failed = dposv(system, np.maximum(confidence, 0) @ met)
    return np.zeros(len(gramian)) if failed else np.asarray(solution)


def content_profile(rows: Scores, history: History) -> Scores:
    """float32[p] of length 1: liked items attract, disliked ones repel, the latest count most."""
    recency = _RECENCIES[LONGEST_HISTORY - len(history) :]
    strength = _STRENGTHS.take(history.signs, mode="wrap")
    profile = ((strength * recency).astype(np.float32)) @ rows
    length = math.sqrt(float(profile @ profile))
    return np.asarray(profile / np.float32(length) if length > 0 else profile)


_RECENCIES = 0.5 ** (np.arange(LONGEST_HISTORY - 1, -1, -1) / RECENCY)
_STRENGTHS = np.array([0.1, 1.0, -0.5])
"""By the sign 0, 1, -1."""


def known_part(history: History, n_items: int) -> History:
    """The newest entries whose items have a position below `n_items`."""
    if len(history) <= LONGEST_HISTORY and history.positions.max(initial=-1) < n_items:
        return history
    which = np.flatnonzero(history.positions < n_items)[-LONGEST_HISTORY:]
    return History(history.positions[which], history.weights[which], history.signs[which], history.timestamps[which])


def fit_als_hybrid(dataset: Dataset, content: Scores, *, seed: int, progress: Progress) -> AlsHybrid:
    """Choose confidence, content weight and trend at moments inside the dataset, then fit on all of it.

    content: float32[n_items, d], rows of `ContentEncoder.transform`
    """
    # Threads of BLAS and of the factorisation get in each other's way: ten times slower, implicit warns.
    with threadpool_limits(1, "blas"):
        progress("als_hybrid: choosing confidence and weights", 0.0)
        confidence, mix = _choose(dataset, content, seed, progress)
        progress("als_hybrid: factorising everything", 0.8)
        fitted = _fit(dataset, content, confidence, seed)
    weighed = replace(
        fitted,
        prior=fitted.prior + mix.prior(dataset),
        content_weight=mix.weights[1],
        chosen={**mix.figures(), "graded": confidence.graded},
    )
    listed = weighed.listed(seed=seed)
    progress("als_hybrid: done", 1.0)
    return listed


def refit_als_hybrid(like: AlsHybrid, dataset: Dataset, content: Scores, *, seed: int) -> AlsHybrid:
    """Fit other data by the choices of one fitted before, without its trend, which is the same for everyone."""
    with threadpool_limits(1, "blas"):
        fitted = _fit(dataset, content, like.confidence, seed)
    return replace(fitted, content_weight=like.content_weight, chosen=like.chosen)


# Weights of factors and content.
_DEFAULT_WEIGHTS = (1.0, 0.25)
_CHOICES = ((1.0, 0.0), (1.0, 0.1), (1.0, 0.25), (1.0, 0.5), (1.0, 1.0))


def _choose(dataset: Dataset, content: Scores, seed: int, progress: Progress) -> tuple[Confidence, Mix]:
    held_out, kind = hold_out_in_turn(dataset, seed=seed), choose_kind(dataset)
    if not held_out:
        return Confidence(graded=True), Mix(_DEFAULT_WEIGHTS, DEFAULT_TREND_WEIGHT, kind)
    tried = []
    for confidence in (Confidence(graded=True), Confidence(graded=False)):
        trials = [Trial(part, partial(_halves, _fit(part.earlier, content, confidence, seed))) for part in held_out]
        tried.append((confidence, choose_mix(trials, kind, _CHOICES, concession=CONCESSION)))
        progress("als_hybrid: choosing confidence and weights", 0.4 * len(tried))
    return max(tried, key=lambda choice: choice[1].ndcg or 0.0)


def _halves(fitted: AlsHybrid, history: History) -> NDArray[np.float32]:
    """float32[2, n_items]: what factors and content say."""
    f, rows = len(fitted.gramian), fitted.vectors.fitted
    user = fitted.user_vector(known_part(history, len(rows)))
    return np.vstack([rows[:, :f] @ user[:f], rows[:, f:] @ user[f:]])


def _fit(dataset: Dataset, content: Scores, confidence: Confidence, seed: int) -> AlsHybrid:
    """The vectors; content weighs 1 and the trend nothing until they are chosen."""
    pairs = dataset.interactions
    matrix = dataset.matrix(confidence.of(pairs.weights, pairs.signs))
    counts = np.bincount(pairs.items[latest_per_pair(pairs)], minlength=dataset.n_items)
    factors = (
        _factorise(sparse.csr_matrix(matrix), seed) if matrix.nnz else np.zeros((dataset.n_items, FACTORS), np.float32)
    )
    content_map = fit_content_map(content, factors, counts)
    vectors = content_map.vectors(content)
    vectors[counts > 0, : factors.shape[1]] = factors[counts > 0]
    learned = vectors[:, : factors.shape[1]].astype(np.float64)
    return AlsHybrid(
        vectors=ItemRows.of(vectors),
        prior=np.where(vectors.any(axis=1), 0, -np.inf).astype(np.float32),
        gramian=learned.T @ learned + REGULARIZATION * np.eye(factors.shape[1]),
        content_map=content_map,
        confidence=confidence,
        content_weight=1.0,
        chosen={},
    )


def _factorise(confidences: sparse.csr_matrix, seed: int) -> Scores:
    """float32[n_items, f]"""
    # Imported here because serving never factorises, and every worker would carry the library.
    from implicit.cpu.als import AlternatingLeastSquares  # noqa: PLC0415

    als = AlternatingLeastSquares(
        factors=FACTORS, regularization=REGULARIZATION, alpha=1.0, iterations=ITERATIONS, random_state=seed
    )
    als.fit(confidences, show_progress=False)
    return np.asarray(als.item_factors, np.float32)
