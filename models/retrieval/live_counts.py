"""Live counts: what people choose now, as the counters of the moment say, not as of the last training.

Counts become shares with a prior, so that the first click after a silence neither empties nor floods the list: a few
pseudo-events are spread as all-time popularity is, and all-time popularity itself starts from what an item's content
lets expect (additive smoothing towards a background model, as in language modelling: Zhai and Lafferty, 2004).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    Indices,
    Leading,
    LiveSignals,
    Parameters,
    Parts,
    Positions,
    Progress,
    Query,
    Reason,
    ReasonCode,
    Scores,
)
from models.data.dataset import Dataset
from models.data.gains import gains_at
from models.live.counters import HALF_LIVES
from models.live.stream import choices_of, live_state_of
from models.retrieval.dense import DenseRecommender

PSEUDO_EVENTS = 2.0
"""Events at the rate of all-time popularity that are added to every decayed counter."""
MOST_KEPT = 65_536
"""Up to so many items the shares of all are kept for as long as they hold; of more, only those asked for are told."""
_SOME = 4_096
MOST_LEADING = 200
_LEAST_EXPECTED, _MOST_EXPECTED = 0.03, 3.0
_RIDGE = 10.0
DEFAULT = HALF_LIVES.index(86_400.0)
_CHOSEN_ON = 0.3
"""Newest part of the data on which the half-life is chosen, by what foretells the next choice best."""
_MOST_CHOICES = 4_000
_FEWEST_CHOICES = 100


@dataclass(frozen=True)
class ExpectedCounts:
    """What an item's content lets expect of it before anybody met it: a ridge regression of log counts.

    weights: float32[d + 1], the last one for the constant
    """

    weights: Scores

    def __call__(self, content: Scores) -> Scores:
        """float32[n] events, between 0.03 and 3; the constant's where nothing is known of an item."""
        logs = content @ self.weights[:-1] + self.weights[-1]
        return np.asarray(np.exp(np.clip(logs, np.log(_LEAST_EXPECTED), np.log(_MOST_EXPECTED))), np.float32)

    @classmethod
    def fit(cls, content: Scores, totals: NDArray[np.float64]) -> Self:
        if len(content) == 0:
            return cls(np.zeros(content.shape[1] + 1, np.float32))
        target = np.log(totals + _LEAST_EXPECTED)
        rows = np.hstack([content, np.ones((len(content), 1))]).astype(np.float64)
        penalty = np.diag([_RIDGE] * content.shape[1] + [1e-6])
        return cls(np.linalg.solve(rows.T @ rows + penalty, rows.T @ target).astype(np.float32))


class _Moment:
    """The shares of all items at one time, once they were asked for twice: until then it is quicker to count a few.

    at:      whole unix seconds
    by_item: float32[n, h + 1], the same, what is said of an item side by side: a few items are so taken out in a third
             of the time
    """

    __slots__ = ("at", "by_item", "is_asked", "live", "shares", "version")

    def __init__(self, live: LiveSignals | None, version: int, at: float) -> None:
        self.live, self.version, self.at = live, version, at
        self.is_asked = False
        self.shares: Scores | None = None
        self.by_item: Scores | None = None


class _Kept:
    """What the next question may need again: single objects, replaced as a whole, so threads may share them."""

    __slots__ = ("average", "moment")

    def __init__(self) -> None:
        self.moment: _Moment | None = None
        self.average: tuple[LiveSignals | None, float | None, Scores] | None = None


@dataclass(frozen=True)
class LiveCounts(DenseRecommender):
    """Built by `fit_live_counts` or `from_parts`. Every item has a finite score, also those never met.

    as_fitted: float32[h + 1, n], decayed counts at the end of the data and the totals behind them: what is used
               for a query without live signals
    expected:  float32[n + m], events that each item's content lets expect
    served:    index of the half-life that `scores` answers by
    """

    name: ClassVar[str] = "live_counts"
    as_fitted: Scores
    expect: ExpectedCounts
    expected: Scores
    served: int
    _kept: _Kept = field(default_factory=_Kept, init=False, repr=False, compare=False)

    @property
    def n_items(self) -> int:
        return len(self.expected)

    @property
    def n_fitted(self) -> int:
        return int(self.as_fitted.shape[1])

    def scores(self, query: Query) -> Scores:
        return np.asarray(self.log_shares(query)[self.served])

    def log_shares(self, query: Query) -> Scores:
        """float32[h + 1, n_items]: logarithm of each item's share of what people do, by half-life, then of all time.

        As of the second before: within it the shares stay as they are until something happens.
        """
        return self._shares_at(self._now(query))

    def _now(self, query: Query) -> _Moment:
        live, at, version = query.live, 0.0, 0
        if live is not None:
            # Before the counts: what is folded between the two is then counted again for the next question.
            at, version = float(np.floor(query.at)), live.version
        moment = self._kept.moment
        if moment is None or moment.live is not live or moment.version != version or moment.at != at:
            moment = self._kept.moment = _Moment(live, version, at)
        return moment

    def _shares_at(self, moment: _Moment) -> Scores:
        if moment.shares is not None:
            return moment.shares
        if moment.live is None:
            counts = _widened(self.as_fitted, self.n_items)
            masses, total = counts[:-1].sum(axis=1, dtype=np.float64), float(counts[-1].sum(dtype=np.float64))
            shares = self._log(counts[:-1], counts[-1] + self.expected, masses, total + self._all_expected)
        else:
            shares = self._log_shares_now(moment.live, moment.at, np.arange(self.n_items))
        shares.setflags(write=False)
        if self.n_items <= MOST_KEPT:
            moment.shares = shares
        return shares

    def _by_item(self, moment: _Moment) -> Scores:
        by_item = moment.by_item
        if by_item is None:
            by_item = moment.by_item = np.ascontiguousarray(self._shares_at(moment).T)
        return by_item

    def log_shares_of(self, query: Query, positions: Indices) -> Scores:
        """float32[h + 1, k]: what `log_shares` says of these positions, for whom it need not look at all the others."""
        moment = self._now(query)
        is_again, moment.is_asked = moment.is_asked, True
        # All of them are there, so nothing is clipped; to look for those that are not takes three times as long.
        if self.n_items <= MOST_KEPT and (is_again or query.live is None):
            return np.asarray(self._by_item(moment).take(positions, axis=0, mode="clip").T)
        if query.live is None:
            return np.asarray(self._shares_at(moment).take(positions, axis=1, mode="clip"))
        return self._log_shares_now(query.live, moment.at, positions)

    def _log_shares_now(self, live: LiveSignals, at: float, positions: Indices) -> Scores:
        counts, totals, masses, total = live.counted(positions, at, self.n_items)
        return self._log(counts, totals + self.expected[positions], masses, total + self._all_expected)

    def _log(self, counts: Scores, totals: Scores, masses: NDArray[np.float64], total: float) -> Scores:
        shares = np.empty((len(counts) + 1, len(totals)), np.float32)
        background = np.divide(totals, np.float32(total), out=shares[-1])
        np.add(counts, np.float32(PSEUDO_EVENTS) * background, out=shares[:-1])
        shares[:-1] /= (masses + PSEUDO_EVENTS).astype(np.float32)[:, None]
        return np.log(shares, out=shares)

    def average_log_shares(self, query: Query) -> Scores:
        """float32[h + 1]: the mean over all items, or some where there are many, as of a time in this minute."""
        minute = None if query.live is None else query.at // 60
        average = self._kept.average
        if average is None or average[0] is not query.live or average[1] != minute:
            mean = self.log_shares_of(query, self._some_items).mean(axis=1)
            average = self._kept.average = query.live, minute, np.asarray(mean)
        return average[2]

    @cached_property
    def _some_items(self) -> Positions:
        return np.linspace(0, self.n_items - 1, _SOME).astype(np.int32)

    @cached_property
    def leading_as_fitted(self) -> Leading:
        """The most chosen by each half-life and of all time, as of the fit: for who has no live signals."""
        n = self.n_fitted
        best = np.argpartition(self.as_fitted, max(n - MOST_LEADING, 0), axis=1)[:, max(n - MOST_LEADING, 0) :]
        return Leading(np.unique(best).astype(np.int32), np.empty(0, np.int32))

    @cached_property
    def _all_expected(self) -> float:
        return float(self.expected.sum(dtype=np.float64))

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        code: ReasonCode = "popular" if query.live is None else "live"
        return [Reason(code)] * len(positions)

    def with_new_items(self, content: Scores) -> Self:
        return replace(self, expected=np.concatenate([self.expected[: self.n_fitted], self.expect(content)]))

    def parts(self) -> Parts:
        arrays = {
            "as_fitted": self.as_fitted,
            "expect": self.expect.weights,
            "expected": self.expected[: self.n_fitted],
        }
        return Parts({"half_lives": list(HALF_LIVES), "served": self.served}, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        if tuple(parameters["half_lives"]) != HALF_LIVES:
            raise ValueError(f"fitted for half-lives {parameters['half_lives']}, this code counts by {HALF_LIVES}")
        return cls(arrays["as_fitted"], ExpectedCounts(arrays["expect"]), arrays["expected"], parameters["served"])


def fit_live_counts(dataset: Dataset, content: Scores, *, progress: Progress) -> LiveCounts:
    """Remember what was counted by the end of the data, and choose the half-life to answer by."""
    progress("live_counts: counting", 0.0)
    fitted = _counted_until_now(dataset, content, DEFAULT)
    progress("live_counts: choosing a half-life", 0.1)
    n = len(dataset.interactions)
    start = n - round(n * _CHOSEN_ON)
    earlier = dataset.with_interactions(dataset.interactions.take(slice(0, start)))
    served = _best_half_life(_counted_until_now(earlier, content, DEFAULT), dataset, start)
    progress("live_counts: done", 1.0)
    return replace(fitted, served=served)


def refit_live_counts(like: LiveCounts, dataset: Dataset, content: Scores) -> LiveCounts:
    """Count other data; answer by the half-life of one fitted before."""
    return _counted_until_now(dataset, content, like.served)


def _counted_until_now(dataset: Dataset, content: Scores, served: int) -> LiveCounts:
    signals: LiveSignals = live_state_of(dataset)
    totals = _widened(signals.totals(), dataset.n_items)
    expect = ExpectedCounts.fit(content, totals.astype(np.float64))
    decayed = _widened(signals.counts(dataset.ends_at), dataset.n_items)
    return LiveCounts(np.vstack([decayed, totals]), expect, expect(content), served)


def _best_half_life(fitted: LiveCounts, dataset: Dataset, start: int) -> int:
    gains: list[NDArray[np.float64]] = []
    for choice in choices_of(dataset, start, len(dataset.interactions), most=_MOST_CHOICES):
        shares = fitted.log_shares(choice.query)[:-1].copy()
        shares[:, choice.query.excluded] = -np.inf
        ranks = (shares > shares[:, [choice.chosen]]).sum(axis=1)
        gains.append(gains_at(ranks))
    return DEFAULT if len(gains) < _FEWEST_CHOICES else int(np.mean(gains, axis=0).argmax())


def _widened(counts: Scores, n: int) -> Scores:
    """Cut or filled up with zeros to n items: the signals may know more or fewer than the release."""
    missing = n - counts.shape[-1]
    if missing <= 0:
        return counts[..., :n]
    return np.concatenate([counts, np.zeros((*counts.shape[:-1], missing), np.float32)], axis=-1)
