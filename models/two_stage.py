"""Two stages as one recommender: live counts and every personal source say what they think, the blend ranks.

Retrieval is the sources' own scoring of all items, which up to about 100,000 of them costs less than cutting
lists and joining them (see `DenseRecommender`), and leaves no right answer out before it is ranked. What each opinion
is worth, and in which situation, is learned from what users chose in the later part of the data (`fit_blend`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Parameters, Parts, Positions, Query, Reason, Recommender, Scores
from models.ranking.features import CO_VISITS, SHARES, Step, Surprise, co_visits, context_of, leading_step, steps_back
from models.ranking.listwise import ListwiseRanker
from models.retrieval.dense import DenseRecommender, allowed_scores
from models.retrieval.live_counts import LiveCounts


class Contribution(NamedTuple):
    """What one source thinks of some items.

    scores: float32[k], as the source gives them, -inf for no opinion
    ranks:  int32[k], 1 for its best of all items that the query allows; 0 where it has no opinion or the query forbids
    """

    scores: Scores
    ranks: NDArray[np.int32]


class View(NamedTuple):
    """What the ranker sees of a query.

    features: float32[f, n_items]
    context:  float32[c], the situation of the user
    steps:    what the co-visits among the features were counted from
    """

    features: NDArray[np.float32]
    context: NDArray[np.float32]
    steps: list[Step]


class _LastView:
    """The view that was ranked by last: its reasons are asked for next, and it takes longer than all the rest.

    One tuple, replaced as a whole: among threads a view may be missed, never mixed up with another's.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: tuple[Query, View] | None = None

    def keep(self, query: Query, view: View) -> None:
        self._kept = query, view

    def of(self, query: Query) -> View | None:
        """The view that was kept for a query about the same user at the same time; filters play no part in it."""
        if (kept := self._kept) is None:
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
    sources: Mapping[str, Recommender]
    surprises: Mapping[str, Surprise]
    ranker: ListwiseRanker
    chosen: Parameters
    _last_view: _LastView = field(default_factory=_LastView, init=False, repr=False, compare=False)

    @property
    def n_items(self) -> int:
        return self.live_counts.n_items

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Of each row of `View.features`."""
        return (*SHARES, *CO_VISITS, *self.sources)

    def scores(self, query: Query) -> Scores:
        view = self.view(query)
        self._last_view.keep(query, view)
        return self.ranker.scores(view.features, view.context)

    def view(self, query: Query) -> View:
        """The features of all items, and the situation of the user, as of the moment of asking."""
        shares = self.live_counts.log_shares(query)
        steps = steps_back(query, self.n_items)
        opinions = [self._surprise(name, query) for name in self.sources]
        features = np.vstack([shares, co_visits(steps, self.n_items), *opinions])
        return View(features, context_of(query, shares), steps)

    def weights(self) -> dict[str, float]:
        """What each feature moved an item's score by, for one deviation of the feature, on average over choices."""
        return dict(self.chosen.get("weights", {}))

    def contributions(self, query: Query, positions: Positions) -> dict[str, Contribution]:
        """What the live counts, each source and the blend itself think of the positions."""
        asked: dict[str, Recommender] = {self.live_counts.name: self.live_counts, **self.sources, self.name: self}
        return {name: _contribution(source.scores(query), query, positions) for name, source in asked.items()}

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """That of whatever lifts the item furthest above the average item: live counts, co-visits or a source.

        Of the query that was scored last it tells what it was ranked by, also where the live signals went on since.
        """
        reasons = self.live_counts.reasons(query, positions)
        if len(query.history) == 0 or len(positions) == 0:
            return reasons
        view = self._last_view.of(query) or self.view(query)
        liked = set(query.history.liked.tolist())
        steps = [step for step in view.steps if step.position in liked]
        speaker = self._lifts(view, positions).argmax(axis=0)
        speakers: list[Callable[[Positions], Sequence[Reason | None]]]
        speakers = [partial(_led_here, steps), *(partial(source.reasons, query) for source in self.sources.values())]
        for index, speak in enumerate(speakers, start=1):
            own = np.flatnonzero(speaker == index)
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
            sources={name: fitted[name] for name in names},
            surprises={name: Surprise(arrays[f"{name}.mean"], arrays[f"{name}.scale"]) for name in names},
            ranker=ListwiseRanker.from_parts(
                {name.removeprefix("ranker."): array for name, array in arrays.items() if name.startswith("ranker.")}
            ),
            chosen=parameters["chosen"],
        )

    def _surprise(self, name: str, query: Query) -> Scores:
        if len(query.history) == 0:
            return np.zeros(self.n_items, np.float32)
        return self.surprises[name](self.sources[name].scores(query))

    def _lifts(self, view: View, positions: Positions) -> Scores:
        """float32[2 + sources, k]: what lifts each position above the average item: live counts, co-visits, sources."""
        features = view.features[:, positions]
        lifts = (features - view.features.mean(axis=1, keepdims=True)) * self.ranker.effects(features, view.context)
        n_shares, n_live = len(SHARES), len(SHARES) + len(CO_VISITS)
        return np.vstack([lifts[:n_shares].sum(axis=0), lifts[n_shares:n_live].sum(axis=0), lifts[n_live:]])


def _led_here(steps: Sequence[Step], positions: Positions) -> list[Reason | None]:
    """None where nobody was led to the position by the steps."""
    leaders = leading_step(steps, positions)
    return [None if leader is None else Reason("similar_to_liked", leader) for leader in leaders]


def live_counts_among(fitted: Mapping[str, Recommender]) -> LiveCounts:
    """Raises KeyError where there are none."""
    found = fitted.get(LiveCounts.name)
    if not isinstance(found, LiveCounts):
        raise KeyError(f"the blend stands on {LiveCounts.name!r}, which is not among {', '.join(fitted)}")
    return found


def _contribution(scores: Scores, query: Query, positions: Positions) -> Contribution:
    allowed = allowed_scores(scores, query)
    ordered = np.sort(allowed[np.isfinite(allowed)])
    ranks = 1 + len(ordered) - np.searchsorted(ordered, allowed[positions], side="right")
    return Contribution(scores[positions], np.where(np.isfinite(allowed[positions]), ranks, 0).astype(np.int32))
