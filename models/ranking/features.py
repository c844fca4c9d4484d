"""What the blend looks at: an item's shares of what people do now, what its sources say, and the user's situation."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Indices, Positions, Query, Scores
from models.live.counters import HALF_LIVES

STEPS_BACK = 10
"""How many of the user's latest items lead on to others."""
STEP_DISCOUNT = 0.75
"""Each step further back counts this much less."""
_LEAST_SHARE = 1e-3
"""Added to shares before the logarithm: one visitor of a thousand."""
LEAST_MET = 0.01
"""Share of visitors from which on an item is a candidate: one in a hundred of the last item's, one in eight of the
tenth's."""
_MOST_DENSE = 65_536
"""Items up to which a sum for each of them is quicker than to look for those that need one."""
_USUAL = HALF_LIVES.index(4 * 86_400.0)
"""The half-life by which the items of a history are called current or old."""
_LATEST = 3

SHARES = (*(f"live {hours:g} h" for hours in (np.array(HALF_LIVES) / 3600).tolist()), "all time")
CO_VISITS = ("co-visits", "co-visits of the last item")
CONTEXTS = ("history length", "no history", "minutes since the last", "currency of the latest", "currency of the last")


class Step(NamedTuple):
    """One item of a history, and where its visitors were of late.

    items: int32[k], each once; shares: float32[k], of the visitors
    """

    seed: int
    items: Positions
    shares: Scores


class CoVisits:
    """Where the visitors of the user's latest items were of late, the newest item first.

    An item-to-item neighbourhood on what people did lately (Sarwar et al. 2001), which in session-based
    recommendation is hard to beat (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", 2018).
    """

    def __init__(self, steps: Sequence[Step], n: int) -> None:
        """steps: one at least, see `steps_of`; n: positions 0 … n-1 are spoken of"""
        self._steps = steps
        self._n = n

    @cached_property
    def _entries(self) -> tuple[Positions, Scores, list[int]]:
        """All steps' items and discounted shares one after the other, and how many each step has."""
        sizes = [len(step.items) for step in self._steps]
        shares = np.concatenate([step.shares for step in self._steps])
        shares *= _DISCOUNTS[: len(sizes)].repeat(sizes)
        return np.concatenate([step.items for step in self._steps]), shares, sizes

    @cached_property
    def _known(self) -> NDArray[np.int64]:
        """Of many items few are met by anyone: then the sums are kept of these alone."""
        items = self._entries[0]
        return np.unique(items[items < self._n]).astype(np.int64) if self._n > _MOST_DENSE else np.arange(0)

    @cached_property
    def _met(self) -> NDArray[np.float64]:
        items, shares, _ = self._entries
        return self._sums(items, shares)

    def _sums(self, items: Positions, shares: Scores) -> NDArray[np.float64]:
        """float64[n], of each item; where there are many float64[known], of these alone."""
        if self._n <= _MOST_DENSE:
            return np.bincount(items, shares, self._n)[: self._n].astype(np.float64, copy=False)
        return np.bincount(self._places(items), shares, len(self._known) + 1)[:-1].astype(np.float64, copy=False)

    def _places(self, items: Indices) -> NDArray[np.int64]:
        """int64[k]: where the known items stand, behind them for all others."""
        places = self._known.searchsorted(items)
        is_known = np.append(self._known, -1)[places] == items
        return np.asarray(np.where(is_known, places, len(self._known)))

    @classmethod
    def of(cls, query: Query, n: int) -> CoVisits | None:
        """None without a history, and without live signals."""
        steps = steps_of(query)
        return cls(steps, n) if steps else None

    @property
    def seeds(self) -> list[int]:
        """The items that were looked at, the newest first."""
        return [step.seed for step in self._steps]

    def features(self, positions: Indices | None = None) -> NDArray[np.float32]:
        """float32[2, k], of all n without positions: logarithms of how often visitors of all the seeds, and of the
        newest alone, met each."""
        last = self._steps[0]
        met = self._met, self._sums(last.items, last.shares)
        if self._n > _MOST_DENSE:
            places = self._places(np.arange(self._n) if positions is None else positions)
            shares = np.array([np.append(sums, 0).take(places) for sums in met], np.float32)
        elif positions is None:
            shares = np.array(met, np.float32)
        else:
            shares = np.array([sums.take(positions) for sums in met], np.float32)
        shares += np.float32(_LEAST_SHARE)
        return np.log(shares, out=shares)

    def nominees(self) -> NDArray[np.int64]:
        """int64[k], ascending: those that more than a visitor or two met."""
        nominees: NDArray[np.int64] = (self._met >= LEAST_MET).nonzero()[0]
        return nominees if self._n <= _MOST_DENSE else self._known[nominees]

    def leading(self, positions: Positions, seeds: Collection[int]) -> list[int | None]:
        """Of each position, that of these seeds whose visitors met it most; None where those of none did."""
        items, shares, sizes = self._entries
        shares = shares * np.repeat([seed in seeds for seed in self.seeds], sizes)
        ends = np.cumsum(sizes)
        leaders: list[int | None] = []
        for position in positions.tolist():
            entries = (items == position).nonzero()[0]
            leading = entries[shares[entries].argmax()] if len(entries) else 0
            is_led = len(entries) and shares[leading] > 0
            leaders.append(self._steps[int(ends.searchsorted(leading, "right"))].seed if is_led else None)
        return leaders


def steps_of(query: Query) -> tuple[Step, ...]:
    """From the last ten items of the history, the newest first; none without live signals."""
    if query.live is None or len(query.history) == 0:
        return ()
    seeds = query.history.positions[: -STEPS_BACK - 1 : -1].tolist()
    return tuple([Step(seed, *found) for seed, found in zip(seeds, query.live.covisited_each(seeds), strict=True)])


_DISCOUNTS = (STEP_DISCOUNT ** np.arange(STEPS_BACK)).astype(np.float32)
NO_CO_VISITS = np.log(np.float32(_LEAST_SHARE))
"""The co-visit features of what nobody met."""


def latest_known(query: Query, n: int) -> Positions:
    """int32[≤ 3]: the last items of the history that are among positions 0 … n-1: by them it is current or old."""
    positions = query.history.positions
    if len(positions) and positions.max() >= n:
        positions = positions[positions < n]
    return positions[-_LATEST:]


def context_of(query: Query, log_shares: Scores) -> NDArray[np.float32]:
    """float32[5], in the order of CONTEXTS: how well the user is known, how long ago they came, how current their
    taste is (the logarithm of what share their latest items have now).

    log_shares: float32[h + 1, ≤ 3], of the items that `latest_known` gives
    """
    if log_shares.shape[1] == 0:
        return np.array([0, 1, 0, 0, 0], np.float32)
    history, currency = query.history, log_shares[_USUAL].tolist()
    minutes = max(query.at - float(history.timestamps[-1]), 0.0) / 60
    context = [math.log1p(len(history)), 0, math.log1p(minutes), sum(currency) / len(currency), currency[-1]]
    return np.array(context, np.float32)


WIDEST = np.float32(4.0)
_SHRINKAGE = 0.3
"""Part of the median deviation added to each item's, so that rarely scored items don't look surprising."""


@dataclass(frozen=True, slots=True)
class Surprise:
    """What a source usually says of each item.

    Raw scores of a source don't compare: popular items score high with everyone. What tells users apart is how far
    the source's score for this user is from its scores of the same item for others, in standard deviations.

    mean:  float32[n], over a sample of users; 0 where the source had no opinion
    scale: float32[n], 1 / the deviation; the last places are for items that arrived since
    """

    mean: Scores
    scale: Scores

    @classmethod
    def of(cls, sample: Scores) -> Self:
        """Learn from float32[users, n] scores, -inf where the source has no opinion."""
        if len(sample) == 0:
            return cls(np.zeros(sample.shape[1], np.float32), np.ones(sample.shape[1], np.float32))
        scores = np.where(np.isfinite(sample), sample, 0)
        deviation = scores.std(axis=0)
        usual = np.median(deviation[deviation > 0]) if (deviation > 0).any() else 1.0
        return cls(
            scores.mean(axis=0).astype(np.float32),
            (1 / (deviation + _SHRINKAGE * usual)).astype(np.float32),
        )

    def widened(self, n: int) -> Self:
        """For n items of which the last ones arrived since: they are as usual as the median item."""
        added = n - len(self.mean)
        if added == 0:
            return self
        middle = [np.full(added, np.median(values) if len(values) else 0.0) for values in (self.mean, self.scale)]
        return type(self)(
            np.concatenate([self.mean, middle[0]]).astype(np.float32),
            np.concatenate([self.scale, middle[1]]).astype(np.float32),
        )

    def __call__(self, scores: Scores) -> Scores:
        """float32[n] between -4 and 4; 0 for everything where the source has no opinion at all."""
        known = np.isfinite(scores)
        if not known.any():
            return np.zeros(len(scores), np.float32)
        found = np.where(known, scores, np.float32(0))
        found -= self.mean
        found *= self.scale
        return np.clip(found, -WIDEST, WIDEST, out=found)
