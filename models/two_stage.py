"""Two stages as one recommender: live counts and every personal source nominate candidates, the blend ranks them.

Candidates are what leads by any half-life, what visitors of the user's latest items met, and each source's best. Only
these get the features that differ between users, and go through the ranker: of ten thousand items one in eight. What
each opinion is worth, and in which situation, is learned from what users chose in the later part of the data
(`fit_blend`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    Candidates,
    Indices,
    Mask,
    Parameters,
    Parts,
    Positions,
    Query,
    Reason,
    Recommender,
    Scores,
)
from models.ranking.features import (
    CO_VISITS,
    NO_CO_VISITS,
    SHARES,
    WIDEST,
    CoVisits,
    Surprise,
    context_of,
    latest_known,
)
from models.ranking.listwise import ListwiseRanker
from models.retrieval.dense import DenseRecommender, allowed_scores, best_among, is_allowed
from models.retrieval.live_counts import LiveCounts
from models.retrieval.opinions import Opinion, Source

MOST_CO_VISITED = 500
"""Candidates from among what visitors of the user's latest items met."""
FEWEST_LEADING = 100
"""Where filters leave fewer of the leading items, more than were asked for, everything allowed is a candidate."""
_N_LIVE = len(SHARES) + len(CO_VISITS)


class Contribution(NamedTuple):
    """What one source thinks of some items.

    scores: float32[k], as the source gives them, -inf for no opinion
    ranks:  int32[k], 1 for its best of all items that the query allows; 0 where it has no opinion or the query forbids
    """

    scores: Scores
    ranks: NDArray[np.int32]


class View(NamedTuple):
    """What the ranker sees of a query.

    positions: of k items, each once, in any order
    features:  float32[f, k]
    context:   float32[c], the situation of the user
    co_visits: what the features of that name were counted from
    opinions:  by source, None where it has nothing to say
    """

    positions: Indices
    features: NDArray[np.float32]
    context: NDArray[np.float32]
    co_visits: CoVisits | None
    opinions: Mapping[str, Opinion | None]


class _Front(NamedTuple):
    """The leading items, and what of them is the same for all users.

    leading:   int32, as the live signals gave them
    positions: int64[k], those of them that the blend speaks of
    rows:      by source, what its opinions need of these
    """

    leading: Positions
    positions: NDArray[np.int64]
    rows: Mapping[str, NDArray[Any]]


class _Usual(NamedTuple):
    """float32[sources, n] each: what is usual of every source, its offsets taken off, and 1 / the deviation."""

    means: NDArray[np.float32]
    scales: NDArray[np.float32]


class _Kept:
    """What the next question may need again.

    Each is one object, replaced as a whole: among threads one may be missed, never mixed up with another's.
    """

    __slots__ = ("_front", "_view")

    def __init__(self) -> None:
        self._front: _Front | None = None
        self._view: tuple[Query, View] | None = None

    def front(self, leading: Positions, make: Callable[[Positions], _Front]) -> _Front:
        """That of this very array."""
        front = self._front
        if front is None or front.leading is not leading:
            front = self._front = make(leading)
        return front

    def keep(self, query: Query, view: View) -> None:
        self._view = query, view

    def view_of(self, query: Query) -> View | None:
        """That of a query about the same user at the same time; filters play no part in it."""
        if (kept := self._view) is None:
            return None
        asked, view = kept
        is_same = (
            asked.history is query.history
            and asked.live is query.live
            and asked.at == query.at
            and asked.preferred_categories == query.preferred_categories
        )
        return view if is_same else None


@dataclass(frozen=True)
class Blend(DenseRecommender):
    """Built by `fit_blend` or `from_parts`. Every item has a finite score, whatever the history.

    live_counts: what everyone does now
    sources:     the personal recommenders, by name
    surprises:   what is usual of each source, in the same order
    ranker:      weighs the features, in the order of `feature_names`
    chosen:      figures of the fit: `weights` by feature, what was measured on choices that it did not learn from
    """

    name: ClassVar[str] = "blend"
    live_counts: LiveCounts
    sources: Mapping[str, Source]
    surprises: Mapping[str, Surprise]
    ranker: ListwiseRanker
    chosen: Parameters
    _kept: _Kept = field(default_factory=_Kept, init=False, repr=False, compare=False)

    @property
    def n_items(self) -> int:
        return self.live_counts.n_items

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Of each row of `View.features`."""
        return (*SHARES, *CO_VISITS, *self.sources)

    def scores(self, query: Query) -> Scores:
        view = self.view(query)
        self._kept.keep(query, view)
        return self.ranker.scores(view.features, view.context)

    def recommend(self, query: Query) -> Candidates:
        """The best of the candidates: of the leading items and of those that anything personal nominates."""
        allowed = is_allowed(query, self.n_items)
        leading = self.live_counts.leading_as_fitted if query.live is None else query.live.leading()
        front = self._kept.front(leading, self._front)
        co_visits, opinions = CoVisits.of(query, self.n_items), self._opinions(query)
        if np.count_nonzero(allowed[front.positions]) < FEWEST_LEADING + query.limit:
            others = allowed.copy()
        else:
            others = self._nominated(co_visits, opinions)
            others &= allowed
        others[front.positions] = False
        view = self._view(query, co_visits, opinions, np.flatnonzero(others), front)
        self._kept.keep(query, view)
        scores = self.ranker.scores(view.features, view.context)
        return best_among(view.positions, scores, allowed, query.limit)

    def view(self, query: Query) -> View:
        """The features of all items, and the situation of the user, as of the moment of asking."""
        features = np.empty((len(self.feature_names), self.n_items), np.float32)
        shares, co_visits = self.live_counts.log_shares(query), CoVisits.of(query, self.n_items)
        features[: len(SHARES)] = shares
        features[len(SHARES) : _N_LIVE] = NO_CO_VISITS if co_visits is None else co_visits.features()
        for row, name in enumerate(self.sources, start=_N_LIVE):
            features[row] = self.surprises[name](self.sources[name].scores(query)) if len(query.history) else 0
        context = context_of(query, shares[:, latest_known(query, self.n_items)])
        return View(np.arange(self.n_items), features, context, co_visits, self._opinions(query))

    def weights(self) -> dict[str, float]:
        """What each feature moved an item's score by, for one deviation of the feature, on average over choices."""
        return dict(self.chosen.get("weights", {}))

    def contributions(self, query: Query, positions: Positions) -> dict[str, Contribution]:
        """What the live counts, each source and the blend itself think of the positions."""
        asked: dict[str, Recommender] = {self.live_counts.name: self.live_counts, **self.sources, self.name: self}
        return {name: _contribution(source.scores(query), query, positions) for name, source in asked.items()}

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """That of whatever lifts the item furthest above what is usual: live counts, co-visits or a source.

        Of the query that was answered last it tells what it was ranked by, also where the live signals went on since.
        """
        reasons = self.live_counts.reasons(query, positions)
        if len(query.history) == 0 or len(positions) == 0:
            return reasons
        view = self._kept.view_of(query)
        if view is None:
            view = self._view(query, CoVisits.of(query, self.n_items), self._opinions(query), positions)
        speaker = self._lifts(query, view, positions).argmax(axis=0)
        for index, speak in enumerate(self._speakers(query, view), start=1):
            own = (speaker == index).nonzero()[0]
            for place, reason in zip(own.tolist(), speak(positions[own]) if len(own) else (), strict=True):
                reasons[place] = reason or reasons[place]
        return reasons

    def with_new_items(self, content: Scores) -> Self:
        n_fitted = self.live_counts.n_fitted
        return replace(
            self,
            live_counts=self.live_counts.with_new_items(content),
            sources={name: source.with_new_items(content) for name, source in self.sources.items()},
            surprises={
                name: Surprise(usual.mean[:n_fitted], usual.scale[:n_fitted]).widened(n_fitted + len(content))
                for name, usual in self.surprises.items()
            },
        )

    def parts(self) -> Parts:
        n_fitted = self.live_counts.n_fitted
        arrays: dict[str, NDArray[Any]] = {f"ranker.{name}": array for name, array in self.ranker.parts().items()}
        for name, usual in self.surprises.items():
            arrays |= {f"{name}.mean": usual.mean[:n_fitted], f"{name}.scale": usual.scale[:n_fitted]}
        return Parts({"sources": list(self.sources), "chosen": dict(self.chosen)}, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays, fitted: Mapping[str, Recommender]) -> Self:
        """fitted: live counts and the sources, by name, as `artifacts.load` has built them before."""
        names = list(parameters["sources"])
        return cls(
            live_counts=live_counts_among(fitted),
            sources=sources_among(fitted, names),
            surprises={name: Surprise(arrays[f"{name}.mean"], arrays[f"{name}.scale"]) for name in names},
            ranker=ListwiseRanker.from_parts(
                {name.removeprefix("ranker."): array for name, array in arrays.items() if name.startswith("ranker.")}
            ),
            chosen=parameters["chosen"],
        )

    @cached_property
    def _usual(self) -> _Usual:
        means = [usual.mean - self.sources[name].offsets() for name, usual in self.surprises.items()]
        shape = len(self.sources), self.n_items
        scales = np.array([usual.scale for usual in self.surprises.values()], np.float32).reshape(shape)
        return _Usual(np.array(means, np.float32).reshape(shape), scales)

    def _front(self, leading: Positions) -> _Front:
        known = leading[: np.searchsorted(leading, self.n_items)].astype(np.int64)
        return _Front(leading, known, {name: source.rows_of(known) for name, source in self.sources.items()})

    def _opinions(self, query: Query) -> dict[str, Opinion | None]:
        known = len(query.history) > 0
        return {name: source.opinion(query) if known else None for name, source in self.sources.items()}

    def _nominated(self, co_visits: CoVisits | None, opinions: Mapping[str, Opinion | None]) -> Mask:
        """bool[n]: what is a candidate for this user, whoever leads."""
        nominated = np.zeros(self.n_items, np.bool_)
        if co_visits is not None:
            nominated[co_visits.nominees(MOST_CO_VISITED)] = True
        for opinion in opinions.values():
            if opinion is not None:
                nominated[opinion.nominees()] = True
        return nominated

    def _view(
        self,
        query: Query,
        co_visits: CoVisits | None,
        opinions: Mapping[str, Opinion | None],
        others: Indices,
        front: _Front | None = None,
    ) -> View:
        """The features of the front's items and the others'."""
        positions = others if front is None else np.concatenate([front.positions, others])
        k, latest = len(positions), latest_known(query, self.n_items)
        features = np.empty((len(self.feature_names), k), np.float32)
        shares = self.live_counts.log_shares_of(query, np.concatenate([positions, latest]))
        features[: len(SHARES)] = shares[:, :k]
        features[len(SHARES) : _N_LIVE] = NO_CO_VISITS if co_visits is None else co_visits.features(positions)
        self._surprise(features[_N_LIVE:], positions, others, opinions, front)
        return View(positions, features, context_of(query, shares[:, k:]), co_visits, opinions)

    def _surprise(
        self,
        into: NDArray[np.float32],
        positions: Indices,
        others: Indices,
        opinions: Mapping[str, Opinion | None],
        front: _Front | None,
    ) -> None:
        """Fills float32[sources, k] with how surprising each source's score of each position is."""
        first = len(positions) - len(others)
        for row, (name, opinion) in zip(into, opinions.items(), strict=True):
            if opinion is not None:
                if front is not None:
                    row[:first] = opinion.scores(front.rows[name])
                row[first:] = opinion.scores(self.sources[name].rows_of(others))
        into -= self._usual.means.take(positions, axis=1)
        into *= self._usual.scales.take(positions, axis=1)
        np.minimum(into, WIDEST, out=into)
        np.maximum(into, -WIDEST, out=into)
        for row, opinion in zip(into, opinions.values(), strict=True):
            if opinion is None:
                row[:] = 0

    def _lifts(self, query: Query, view: View, positions: Positions) -> Scores:
        """float32[2 + sources, k]: what lifts each position above what is usual: live counts, co-visits, sources.

        Usual is the average share, that no visitor of the user's items met it, and what a source says to most users.
        """
        is_here = view.positions[:, None] == positions
        features = view.features[:, is_here.argmax(axis=0)]
        if not is_here.any(axis=0).all():
            features = self._view(query, view.co_visits, view.opinions, positions).features
        lifts = self.ranker.effects(features, view.context)
        features[: len(SHARES)] -= self.live_counts.average_log_shares(query)[:, None]
        features[len(SHARES) : _N_LIVE] -= NO_CO_VISITS
        lifts *= features
        n_shares = len(SHARES)
        return np.vstack([lifts[:n_shares].sum(axis=0), lifts[n_shares:_N_LIVE].sum(axis=0), lifts[_N_LIVE:]])

    def _speakers(self, query: Query, view: View) -> Iterator[Callable[[Positions], Sequence[Reason | None]]]:
        """Who gives the reason, where it is not the live counts: co-visits, then the sources."""
        liked = set(query.history.liked.tolist())
        yield lambda positions: _led_here(view.co_visits, liked, positions)
        for opinion in view.opinions.values():
            yield (lambda positions: [None] * len(positions)) if opinion is None else opinion.reasons


def _led_here(co_visits: CoVisits | None, liked: set[int], positions: Positions) -> list[Reason | None]:
    """None where nobody was led to the position by what the user liked."""
    if co_visits is None:
        return [None] * len(positions)
    leaders = co_visits.leading(positions, np.array([seed in liked for seed in co_visits.seeds.tolist()]))
    return [None if leader is None else Reason("similar_to_liked", leader) for leader in leaders]


def live_counts_among(fitted: Mapping[str, Recommender]) -> LiveCounts:
    """Raises KeyError where there are none."""
    found = fitted.get(LiveCounts.name)
    if not isinstance(found, LiveCounts):
        raise KeyError(f"the blend stands on {LiveCounts.name!r}, which is not among {', '.join(fitted)}")
    return found


def sources_among(fitted: Mapping[str, Recommender], names: Sequence[str]) -> dict[str, Source]:
    """Raises KeyError where one is missing, TypeError where one can't be asked about candidates alone."""
    found: dict[str, Source] = {}
    for name in names:
        source = fitted[name]
        if not isinstance(source, Source):
            raise TypeError(f"{name!r} gives no opinions, so it can't be a source of the blend")
        found[name] = source
    return found


def _contribution(scores: Scores, query: Query, positions: Positions) -> Contribution:
    allowed = allowed_scores(scores, query)
    ordered = np.sort(allowed[np.isfinite(allowed)])
    ranks = 1 + len(ordered) - np.searchsorted(ordered, allowed[positions], side="right")
    return Contribution(scores[positions], np.where(np.isfinite(allowed[positions]), ranks, 0).astype(np.int32))
