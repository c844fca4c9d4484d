"""Two stages as one recommender: live counts and every personal source nominate candidates, the blend ranks them.

Candidates are what leads by any half-life, what visitors of the user's latest items met, and each source's best. Only
these get the features that differ between users, and go through the ranker: of ten thousand items one in eight. What
each opinion is worth, and in which situation, is learned from what users chose in the later part of the data
(`fit_blend`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    Candidates,
    Indices,
    Leading,
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
    Step,
    Surprise,
    context_of,
    latest_known,
    steps_of,
)
from models.ranking.listwise import ListwiseRanker
from models.retrieval.dense import DenseRecommender, allowed_scores, is_allowed
from models.retrieval.live_counts import LiveCounts
from models.retrieval.opinions import Opinion, Source, sources_among
from models.views import CO_VISITS_SPEAK, Allowed, Asker, Found, Front, Kept, Personal, Usual, View

FEWEST_CANDIDATES = 100
"""Where filters leave fewer candidates, more than were asked for, everything that they allow is one."""
_KEPT_SECONDS = 3_600
"""So long it is kept what the sources think of a user; as of its beginning, so that nothing depends on who asked."""
_N_LIVE = len(SHARES) + len(CO_VISITS)
_NOBODY = np.empty(0, np.int64)


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
        return view.ranker.scores(view.features)

    def recommend(self, query: Query) -> Candidates:
        """The best of the candidates: of the leading items and of those that anything personal nominates."""
        found = self._found(query)
        personal, allowed = found.personal, self._allowed(query, found)
        if len(allowed) < FEWEST_CANDIDATES + query.limit:
            personal = self._with_own(is_allowed(query, self.n_items).nonzero()[0], personal)
            allowed = np.arange(len(personal.positions))
        view = self._view(query, personal)
        scores = view.ranker.scores(view.features)
        best = _highest(view.positions, scores, allowed, query.limit)
        answer = Candidates(view.positions[best].astype(np.int32), scores[best])
        places = dict(zip(answer.positions.tolist(), best.tolist(), strict=True))
        self._kept.keep(query, view._replace(places=places))
        return answer

    def view(self, query: Query) -> View:
        """The features of all items, and the situation of the user, as of the moment of asking."""
        features, plain = np.ones((len(self.feature_names) + 1, self.n_items), np.float32), _plain(query)
        shares, steps = self.live_counts.log_shares(query), steps_of(query)
        features[: len(SHARES)] = shares
        features[len(SHARES) : _N_LIVE] = CoVisits(steps, self.n_items).features() if steps else NO_CO_VISITS
        for row, name in enumerate(self.sources, start=_N_LIVE):
            features[row] = self.surprises[name](self.sources[name].scores(plain)) if len(query.history) else 0
        looked_up = self._looked_up(query, np.arange(self.n_items))
        everything = Personal(looked_up, features[len(SHARES) :], steps, self._opinions(query), {})
        context = context_of(query, shares[:, everything.latest])
        return View(everything, features, context, self.ranker.situated(context))

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
            nothing = self._looked_up(query, _NOBODY), np.empty((0, 0), np.float32)
            asked = Personal(*nothing, steps_of(query), self._opinions(query), {})
            view = self._view(query, self._with_own(positions, asked))
        said = view.personal.reasons
        spoken = self._lifts(query, view, positions).argmax(axis=0).tolist()
        unsaid = [pair for pair in zip(spoken, positions.tolist(), strict=True) if pair[0] and pair not in said]
        for speaker in sorted({speaker for speaker, _ in unsaid}):
            own = [position for by, position in unsaid if by == speaker]
            told = self._said(speaker, query, view.personal, np.array(own, np.int32))
            said.update(zip([(speaker, position) for position in own], told, strict=True))
        return [
            said.get(pair) or reason
            for pair, reason in zip(zip(spoken, positions.tolist(), strict=True), reasons, strict=True)
        ]

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

    def _found(self, query: Query) -> Found:
        """The user's candidates. Kept: they change with their history and the signals alone, and with the hour."""
        live, asker = query.live, self._asker(query)
        # Before all that is asked of the signals: what comes in between is then looked at for the next question.
        version = 0 if live is None else live.version
        found = self._kept.found(asker)
        if found is not None and found.live is live and found.version == version:
            return found
        leading = self.live_counts.leading_as_fitted if live is None else _within(self.n_items, live.leading())
        front, steps = self._kept.front(leading.chosen, self._front), steps_of(query)
        if found is not None and found.live is live and found.is_from(front, steps) and found.has(leading.since):
            found = found._replace(since=leading.since)
        else:
            found = self._find(query, found, front, leading.since, steps)
        found = found._replace(version=version)
        self._kept.keep_found(asker, found)
        return found

    def _allowed(self, query: Query, found: Found) -> NDArray[np.int64]:
        """int64[k]: where among the candidates those stand that the query allows. Who asks again mostly asks for the
        same."""
        known = found.allowed
        if known is not None and known.is_for(query):
            return known.places
        places = is_allowed(query, self.n_items).take(found.personal.positions).nonzero()[0]
        if query.eligible is not None and (known is None or not known.is_for_another_mask(query)):
            allowed = Allowed(ref(query.eligible), ref(query.excluded), places)
            self._kept.keep_found(self._asker(query), found._replace(allowed=allowed))
        return places

    def _asker(self, query: Query) -> Asker:
        """As of the hour."""
        return Asker(query.at // _KEPT_SECONDS, query.preferred_categories, self._kept.name_of(query.history))

    def _find(
        self, query: Query, before: Found | None, front: Front, since: Positions, steps: tuple[Step, ...]
    ) -> Found:
        """before: what was found for the same history, for which the sources need not be asked again"""
        before = before or self._leading_alone(query, front)
        known = before.personal
        co_visits = CoVisits(steps, self.n_items) if steps else None
        met = _NOBODY if co_visits is None else co_visits.nominees()
        positions = self._together(front.positions, before.nominees, since, met)
        own = np.ones((len(CO_VISITS) + len(self.sources) + 1, len(positions)), np.float32)
        own[: len(CO_VISITS)] = NO_CO_VISITS if co_visits is None else co_visits.features(positions)
        own[len(CO_VISITS) : -1] = self._surprises_at(positions, known)
        looked_up = np.concatenate([positions, known.latest])
        personal = Personal(looked_up, own, steps, known.opinions, known.reasons_of_sources())
        return Found(personal, before.nominees, front.given, since, query.live, 0, personal.nbytes)

    def _leading_alone(self, query: Query, front: Front) -> Found:
        """What the sources think of the user, and of what leads."""
        opinions = self._opinions(query)
        own = np.zeros((len(CO_VISITS) + len(self.sources) + 1, len(front.positions)), np.float32)
        own[len(CO_VISITS) : -1] = self._surprises_of(opinions, front)
        personal = Personal(self._looked_up(query, front.positions), own, (), opinions, {})
        return Found(personal, _nominees(opinions), front.given, np.empty(0, np.int32), query.live, 0, 0)

    def _surprises_at(self, positions: NDArray[np.int64], known: Personal) -> NDArray[np.float32]:
        """float32[sources, k], of positions that ascend as the known ones do: only of the others the sources are
        asked."""
        if not len(known.positions):
            return self._surprises_of(known.opinions, self._front(positions))
        places = known.positions.searchsorted(positions)
        surprises = known.own[len(CO_VISITS) : -1].take(places, axis=1, mode="clip")
        others = (known.positions.take(places, mode="clip") != positions).nonzero()[0]
        if len(others):
            surprises[:, others] = self._surprises_of(known.opinions, self._front(positions[others]))
        return surprises

    def _with_own(self, positions: Indices, personal: Personal) -> Personal:
        """The same user before other items, ascending or not."""
        items = self._front(positions)
        own = np.ones((len(CO_VISITS) + len(self.sources) + 1, len(items.positions)), np.float32)
        steps = personal.steps
        own[: len(CO_VISITS)] = CoVisits(steps, self.n_items).features(items.positions) if steps else NO_CO_VISITS
        own[len(CO_VISITS) : -1] = self._surprises_of(personal.opinions, items)
        return personal._replace(looked_up=np.concatenate([items.positions, personal.latest]), own=own)

    def _looked_up(self, query: Query, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Personal`."""
        return np.concatenate([positions, latest_known(query, self.n_items)])

    def _together(self, *many: Indices) -> NDArray[np.int64]:
        """int64[k], ascending: all of them, each once."""
        is_one = np.zeros(self.n_items, np.bool_)
        for positions in many:
            is_one[positions] = True
        return is_one.nonzero()[0]

    def _opinions(self, query: Query) -> dict[str, Opinion | None]:
        if len(query.history) == 0:
            return dict.fromkeys(self.sources)
        plain = _plain(query)
        return {name: source.opinion(plain) for name, source in self.sources.items()}

    def _view(self, query: Query, personal: Personal) -> View:
        k = personal.own.shape[1]
        shares = self.live_counts.log_shares_of(query, personal.looked_up)
        features, context = np.concatenate([shares[:, :k], personal.own]), context_of(query, shares[:, k:])
        return View(personal, features, context, self.ranker.situated(context))

    def _surprises_of(self, opinions: Mapping[str, Opinion | None], items: Front) -> NDArray[np.float32]:
        """float32[sources, k]: how surprising each source's scores of the items are, 0 where it has no opinion."""
        surprises = items.usual.means.copy()
        for row, (name, opinion) in enumerate(opinions.items()):
            if opinion is not None:
                surprises[row] = opinion.scores(items.rows[name])
        surprises -= items.usual.means
        surprises *= items.usual.scales
        np.minimum(surprises, WIDEST, out=surprises)
        return np.maximum(surprises, -WIDEST, out=surprises)

    def _lifts(self, query: Query, view: View, positions: Positions) -> Scores:
        """float32[2 + sources, k]: what lifts each position above what is usual: live counts, co-visits, sources.

        Usual is the average share, that no visitor of the user's items met it, and what a source says to most users.
        """
        places = [view.places.get(position) for position in positions.tolist()]
        if None in places:
            features = self._view(query, self._with_own(positions, view.personal)).features
        else:
            features = view.features.take(np.array(places), axis=1)
        usual = np.zeros((len(features) - 1, 1), np.float32)
        usual[: len(SHARES), 0] = self.live_counts.average_log_shares(query)
        usual[len(SHARES) : _N_LIVE] = NO_CO_VISITS
        lifts = view.ranker.effects(features)
        lifts *= features[:-1] - usual
        return np.asarray(np.add.reduceat(lifts, self._speakers))

    @cached_property
    def _speakers(self) -> NDArray[np.int64]:
        """int64[2 + sources]: the first feature of each who gives reasons."""
        return np.array([0, len(SHARES), *range(_N_LIVE, _N_LIVE + len(self.sources))])

    def _said(self, speaker: int, query: Query, personal: Personal, positions: Positions) -> Sequence[Reason | None]:
        """What co-visits or a source give for the reason."""
        if speaker == CO_VISITS_SPEAK and personal.steps:
            return _led_here(CoVisits(personal.steps, self.n_items), set(query.history.liked.tolist()), positions)
        opinion = None if speaker == CO_VISITS_SPEAK else list(personal.opinions.values())[speaker - 2]
        return [None] * len(positions) if opinion is None else opinion.reasons(positions)


def _within(n: int, leading: Leading) -> Leading:
    """Without items met since that are newer than the blend; the very same arrays where there are none."""
    since = leading.since
    return leading._replace(since=since[since < n]) if since.max(initial=-1) >= n else leading


def _nominees(opinions: Mapping[str, Opinion | None]) -> Positions:
    """int32[k], of all sources; some twice"""
    found = [opinion.nominees() for opinion in opinions.values() if opinion is not None]
    return np.concatenate(found) if found else np.empty(0, np.int32)


def _plain(query: Query) -> Query:
    """What the sources are asked: without what belongs to this question alone, such as its filters, for it is kept."""
    at = query.at // _KEPT_SECONDS * _KEPT_SECONDS
    return Query(limit=0, at=at, history=query.history, preferred_categories=query.preferred_categories)


def _highest(positions: Indices, scores: Scores, places: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The `limit` of these places with the best scores, best first; ties go to the lower position."""
    if limit < len(places):
        left = scores.take(places)
        least = np.partition(left, len(left) - limit)[len(left) - limit] if limit else np.inf
        places = places[left >= least]
    return places[np.lexsort((positions[places], -scores[places]))[:limit]]


def _led_here(co_visits: CoVisits, liked: set[int], positions: Positions) -> list[Reason | None]:
    """None where nobody was led to the position by what the user liked."""
    leaders = co_visits.leading(positions, liked)
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
