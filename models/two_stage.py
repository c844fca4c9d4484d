"""Two stages as one recommender: popularity and every personal source say what they think, the blend ranks.

Retrieval is the sources' own scoring of all items, which up to about 100,000 of them costs less than cutting
lists and joining them (see `DenseRecommender`). How much each source counts is learned on held-out time: the
sources are fitted again on the earlier part of the data, and judged on what users did afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    History,
    Parameters,
    Parts,
    Positions,
    Progress,
    Query,
    Reason,
    Recommender,
    Scores,
)
from models.data.dataset import Dataset
from models.data.splits import Split, rolling_splits
from models.ranking.blend import Lists, Surprise, fit_weights, log_popularity
from models.retrieval.dense import DenseRecommender, allowed_scores
from models.retrieval.popularity import Popularity

CUTS = (0.5, 0.6, 0.7, 0.8)
"""Where in the data the weights are learned: at several moments, for one may be a week of an odd film."""
DEFAULT_WEIGHT = 0.3
"""Of each source where there are too few users to learn from."""

_MOST_USERS = 1_500
_FEWEST_USERS = 30
_SAMPLE = 500
"""Users whose scores say what is usual of an item."""
_POPULAR = 200
_PER_SOURCE = 50


class Contribution(NamedTuple):
    """What one source thinks of some items.

    scores: float32[k], as the source gives them, -inf for no opinion
    ranks:  int32[k], 1 for its best of all items that the query allows; 0 where it has no opinion or the query forbids
    """

    scores: Scores
    ranks: NDArray[np.int32]


@dataclass(frozen=True)
class Blend(DenseRecommender):
    """Built by `fit_blend` or `from_parts`. Every item has a finite score, whatever the history.

    popularity: the prior of everyone
    sources:    the personal recommenders, by name
    surprises:  what is usual of each source, in the same order
    factors:    float weights of the sources, popularity's being 1
    prior:      float32[n_items], the logarithm of popularity
    chosen:     figures that the weights rest on
    """

    name: ClassVar[str] = "blend"
    popularity: Popularity
    sources: Mapping[str, Recommender]
    surprises: Mapping[str, Surprise]
    factors: Mapping[str, float]
    prior: Scores
    chosen: Parameters

    @property
    def n_items(self) -> int:
        return self.popularity.n_items

    def scores(self, query: Query) -> Scores:
        total = self.prior.copy()
        for added in self._added(query).values():
            total += added
        return total

    def weights(self) -> dict[str, float]:
        """What each source counts: popularity's logarithm 1, the others' surprise (standard deviations)."""
        return {self.popularity.name: 1.0, **self.factors}

    def contributions(self, query: Query, positions: Positions) -> dict[str, Contribution]:
        """What popularity, each source and the blend itself think of the positions."""
        asked: dict[str, Recommender] = {self.popularity.name: self.popularity, **self.sources, self.name: self}
        return {name: _contribution(source.scores(query), query, positions) for name, source in asked.items()}

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """Those of the source that adds most to the item; `popular` where none adds anything."""
        reasons = self.popularity.reasons(query, positions)
        added = self._added(query)
        if not added or len(positions) == 0:
            return reasons
        strongest = np.stack([values[positions] for values in added.values()])
        speaker = np.where(strongest.max(axis=0) > 0, strongest.argmax(axis=0), -1)
        for index, name in enumerate(added):
            own = np.flatnonzero(speaker == index)
            for place, reason in zip(own, self.sources[name].reasons(query, positions[own]), strict=True):
                reasons[place] = reason
        return reasons

    def with_new_items(self, content: Scores) -> Self:
        n_fitted = self.n_items - self.popularity.n_new
        popularity = self.popularity.with_new_items(content)
        return replace(
            self,
            popularity=popularity,
            sources={name: source.with_new_items(content) for name, source in self.sources.items()},
            surprises={
                name: Surprise(usual.mean[:n_fitted], usual.scale[:n_fitted]).widened(popularity.n_items)
                for name, usual in self.surprises.items()
            },
            prior=log_popularity(popularity.of(popularity.served)),
        )

    def parts(self) -> Parts:
        n_fitted = self.n_items - self.popularity.n_new
        arrays: dict[str, NDArray[Any]] = {}
        for name, usual in self.surprises.items():
            arrays |= {f"{name}.mean": usual.mean[:n_fitted], f"{name}.scale": usual.scale[:n_fitted]}
        return Parts({"factors": dict(self.factors), "chosen": dict(self.chosen)}, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays, fitted: Mapping[str, Recommender]) -> Self:
        """fitted: popularity and the sources, by name, as `artifacts.load` has built them before."""
        names = list(parameters["factors"])
        return cls.of(
            fitted,
            {name: Surprise(arrays[f"{name}.mean"], arrays[f"{name}.scale"]) for name in names},
            parameters["factors"],
            parameters["chosen"],
        )

    @classmethod
    def of(
        cls,
        fitted: Mapping[str, Recommender],
        surprises: Mapping[str, Surprise],
        factors: Mapping[str, float],
        chosen: Parameters,
    ) -> Self:
        popularity = _popularity_among(fitted)
        return cls(
            popularity=popularity,
            sources={name: fitted[name] for name in factors},
            surprises=surprises,
            factors=factors,
            prior=log_popularity(popularity.of(popularity.served)),
            chosen=chosen,
        )

    def _added(self, query: Query) -> dict[str, Scores]:
        """float32[n_items] that each source adds to the prior; nothing for a user without a history."""
        if len(query.history) == 0:
            return {}
        return {
            name: np.float32(factor) * self.surprises[name](self.sources[name].scores(query))
            for name, factor in self.factors.items()
            if factor
        }


def fit_blend(
    dataset: Dataset,
    fitted: Mapping[str, Recommender],
    refit: Callable[[Dataset], Mapping[str, Recommender]],
    *,
    seed: int,
    progress: Progress,
) -> Blend:
    """Learn the weights on time held out inside the dataset, and give them to the sources fitted on all of it.

    fitted: popularity and the sources, by name, fitted on the whole dataset
    refit:  fits the same ones on an earlier part
    """
    names = [name for name in fitted if name != Popularity.name]
    splits = rolling_splits(dataset, CUTS)
    moments: list[Lists] = []
    for step, split in enumerate(splits):
        progress(f"blend: sources as of an earlier moment, {step + 1} of {len(splits)}", 0.9 * step / len(splits))
        visits = _visits(split, seed)
        if len(visits) >= _FEWEST_USERS:
            moments.append(_lists(split.earlier, visits, refit(split.earlier), names, seed))
    progress("blend: weighing the sources", 0.9)
    factors, chosen = _weigh(moments, names)
    surprises = _surprises(dataset, fitted, names, seed)
    progress("blend: done", 1.0)
    return Blend.of(fitted, surprises, factors, chosen)


def _weigh(moments: Sequence[Lists], names: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    if not moments:
        return dict.fromkeys(names, DEFAULT_WEIGHT), {}
    weights, best, alone = fit_weights(moments, len(names))
    figures = {"users": sum(len(lists.wanted) for lists in moments), "ndcg": best, "popularity_ndcg": alone}
    return dict(zip(names, weights, strict=True)), figures


class _Visit(NamedTuple):
    """A user known before a moment, and the items that they met for the first time after it."""

    history: History
    wanted: Positions


def _visits(split: Split, seed: int) -> list[_Visit]:
    """Of a random sample of users; a disliked item was not wanted."""
    histories = split.earlier.histories()
    later = split.later.take(split.later.signs >= 0)
    later = later.take(np.argsort(later.users, kind="stable"))
    users, first = np.unique(later.users, return_index=True)
    visits = [
        _Visit(histories[user], wanted)
        for user, items in zip(users, np.split(later.items, first[1:]), strict=True)
        if len(histories[user]) and len(wanted := np.setdiff1d(items, histories[user].positions))
    ]
    chosen = np.random.default_rng(seed).permutation(len(visits))[:_MOST_USERS]
    return [visits[index] for index in np.sort(chosen)]


def _lists(
    earlier: Dataset, visits: list[_Visit], fitted: Mapping[str, Recommender], names: list[str], seed: int
) -> Lists:
    prior = log_popularity(_popularity_among(fitted).scores(Query(limit=0, at=earlier.ends_at)))
    popular = np.argsort(-prior, kind="stable")[:_POPULAR]
    surprises = _surprises(earlier, fitted, names, seed)
    rows = []
    for visit in visits:
        query = Query(limit=0, at=earlier.ends_at, history=visit.history)
        surprising = np.stack([surprises[name](fitted[name].scores(query)) for name in names])
        positions = _candidates(prior, surprising, popular)
        rows.append((positions, np.vstack([prior, surprising])[:, positions], visit))
    return _padded(rows)


def _candidates(prior: Scores, surprising: Scores, popular: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[m]: whatever could come out on top under some weights: popular, surprising, or half of each."""
    depth = min(_PER_SOURCE, len(prior))
    opinions = [*(prior + surprising), *(prior + 3 * surprising), prior + surprising.sum(axis=0)]
    top = [np.argpartition(-opinion, depth - 1)[:depth] for opinion in opinions]
    return np.unique(np.concatenate([popular, *top]))


def _padded(rows: list[tuple[NDArray[np.int64], Scores, _Visit]]) -> Lists:
    shape = len(rows), max(len(positions) for positions, _, _ in rows)
    features = np.zeros((len(rows[0][1]), *shape), np.float32)
    usable, relevant = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for row, (positions, values, visit) in enumerate(rows):
        m = len(positions)
        features[:, row, :m] = values
        usable[row, :m] = ~np.isin(positions, visit.history.positions)
        relevant[row, :m] = np.isin(positions, visit.wanted)
    return Lists(features, usable, relevant, np.array([len(visit.wanted) for _, _, visit in rows]))


def _surprises(dataset: Dataset, fitted: Mapping[str, Recommender], names: list[str], seed: int) -> dict[str, Surprise]:
    histories = [history for history in dataset.histories() if len(history)]
    chosen = np.random.default_rng(seed).permutation(len(histories))[:_SAMPLE]
    queries = [Query(limit=0, at=dataset.ends_at, history=histories[index]) for index in chosen]
    empty = np.empty((0, dataset.n_items), np.float32)
    return {
        name: Surprise.of(np.stack([fitted[name].scores(query) for query in queries]) if queries else empty)
        for name in names
    }


def _contribution(scores: Scores, query: Query, positions: Positions) -> Contribution:
    allowed = allowed_scores(scores, query)
    ordered = np.sort(allowed[np.isfinite(allowed)])
    ranks = 1 + len(ordered) - np.searchsorted(ordered, allowed[positions], side="right")
    return Contribution(scores[positions], np.where(np.isfinite(allowed[positions]), ranks, 0).astype(np.int32))


def _popularity_among(fitted: Mapping[str, Recommender]) -> Popularity:
    popularity = fitted.get(Popularity.name)
    if not isinstance(popularity, Popularity):
        raise KeyError(f"the blend stands on {Popularity.name!r}, which is not among {', '.join(fitted)}")
    return popularity
