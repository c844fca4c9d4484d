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
from models.retrieval.dense import DenseRecommender, allowed_scores, best_of, is_allowed
from models.retrieval.live_counts import LiveCounts
from models.retrieval.opinions import Opinion, Source
from models.views import Asked, Front, Kept, Usual, View

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
    _kept: Kept = field(default_factory=Kept, init=False, repr=False, compare=False)

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
        allowed, co_visits = is_allowed(query, self.n_items), CoVisits.of(query, self.n_items)
        leading = self.live_counts.leading_as_fitted if query.live is None else query.live.leading()
        front = self._kept.front(leading.chosen, self._front)
        asked = self._asked(query, front)
        if np.count_nonzero(allowed[front.positions]) < FEWEST_LEADING + query.limit:
            others = allowed.copy()
        else:
            others = np.zeros(self.n_items, np.bool_)
            others[leading.since] = True
            if co_visits is not None:
                others[co_visits.nominees()] = True
        others[asked.positions] = False
        view = self._view(query, co_visits, asked, others.nonzero()[0])
        scores = self.ranker.scores(view.features, view.context)
        best = best_of(view.positions, scores, allowed, query.limit)
        found = Candidates(view.positions[best].astype(np.int32), scores[best])
        places = dict(zip(found.positions.tolist(), best.tolist(), strict=True))
        self._kept.keep(query, view._replace(places=places))
        return found

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
            asked = self._nobody_asked._replace(opinions=self._opinions(query))
            view = self._view(query, CoVisits.of(query, self.n_items), asked, positions)
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
    def _usual(self) -> Usual:
        means = [usual.mean - self.sources[name].offsets() for name, usual in self.surprises.items()]
        shape = len(self.sources), self.n_items
        scales = np.array([usual.scale for usual in self.surprises.values()], np.float32).reshape(shape)
        return Usual(np.array(means, np.float32).reshape(shape), scales)

    def _front(self, leading: Indices) -> Front:
        known = leading[: leading.searchsorted(self.n_items)].astype(np.int64)
        rows = {name: source.rows_of(known) for name, source in self.sources.items()}
        return Front(leading, known, rows, self._usual.of(known))

    @cached_property
    def _nobody_asked(self) -> Asked:
        nothing = np.empty((len(self.sources), 0), np.float32)
        return Asked(self._front(np.empty(0, np.int32)), dict.fromkeys(self.sources), np.empty(0, np.int64), nothing)

    def _asked(self, query: Query, front: Front) -> Asked:
        """What the sources think of the user. Kept, for it changes with their history alone, and with the minute."""
        if len(query.history) == 0:
            return Asked(front, dict.fromkeys(self.sources), front.positions, front.unasked)
        history, minute = query.history, query.at // 60
        columns = history.positions, history.weights, history.signs, history.timestamps
        key = minute, query.preferred_categories, *(column.tobytes() for column in columns)
        return self._kept.asked(key, front, lambda: self._ask(query, front))

    def _ask(self, query: Query, front: Front) -> Asked:
        opinions = self._opinions(query)
        nominees = np.zeros(self.n_items, np.bool_)
        for opinion in opinions.values():
            if opinion is not None:
                nominees[opinion.nominees()] = True
        nominees[front.positions] = False
        others = nominees.nonzero()[0]
        surprises = np.hstack([self._surprises_of(opinions, front), self._surprises_of(opinions, self._front(others))])
        return Asked(front, opinions, np.concatenate([front.positions, others]), surprises)

    def _opinions(self, query: Query) -> dict[str, Opinion | None]:
        if len(query.history) == 0:
            return dict.fromkeys(self.sources)
        # Without what belongs to this question alone, such as its filters: they would be kept, too.
        at, preferred = query.at // 60 * 60, query.preferred_categories
        plain = Query(limit=0, at=at, history=query.history, preferred_categories=preferred)
        return {name: source.opinion(plain) for name, source in self.sources.items()}

    def _view(self, query: Query, co_visits: CoVisits | None, asked: Asked, others: Indices) -> View:
        """The features of the items that the sources were asked about, and of others."""
        positions, latest = np.concatenate([asked.positions, others]), latest_known(query, self.n_items)
        k, known = len(positions), len(asked.positions)
        features = np.empty((len(self.feature_names), k), np.float32)
        shares = self.live_counts.log_shares_of(query, np.concatenate([positions, latest]))
        features[: len(SHARES)] = shares[:, :k]
        features[len(SHARES) : _N_LIVE] = NO_CO_VISITS if co_visits is None else co_visits.features(positions)
        features[_N_LIVE:, :known] = asked.surprises
        if known < k:
            features[_N_LIVE:, known:] = self._surprises_of(asked.opinions, self._front(others))
        return View(positions, features, context_of(query, shares[:, k:]), co_visits, asked.opinions)

    def _surprises_of(self, opinions: Mapping[str, Opinion | None], items: Front) -> NDArray[np.float32]:
        """float32[sources, k]: how surprising each source's scores of the items are, 0 where it has no opinion."""
        surprises = np.zeros((len(self.sources), len(items.positions)), np.float32)
        for row, (name, opinion) in enumerate(opinions.items()):
            if opinion is not None:
                surprises[row] = opinion.scores(items.rows[name])
                surprises[row] -= items.usual.means[row]
        surprises *= items.usual.scales
        np.minimum(surprises, WIDEST, out=surprises)
        return np.maximum(surprises, -WIDEST, out=surprises)

    def _lifts(self, query: Query, view: View, positions: Positions) -> Scores:
        """float32[2 + sources, k]: what lifts each position above what is usual: live counts, co-visits, sources.

        Usual is the average share, that no visitor of the user's items met it, and what a source says to most users.
        """
        places = [view.places.get(position) for position in positions.tolist()]
        if None in places:
            asked = self._nobody_asked._replace(opinions=view.opinions)
            features = self._view(query, view.co_visits, asked, positions).features
        else:
            features = view.features.take(np.array(places), axis=1)
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
    leaders = co_visits.leading(positions, liked)
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
