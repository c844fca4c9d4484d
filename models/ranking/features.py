"""What the blend looks at: an item's shares of what people do now, what its sources say, and the user's situation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Indices, Mask, Positions, Query, Scores, Visits
from models.live.counters import HALF_LIVES

STEPS_BACK = 10
"""How many of the user's latest items lead on to others."""
STEP_DISCOUNT = 0.75
"""Each step further back counts this much less."""
_LEAST_SHARE = 1e-3
"""Added to shares before the logarithm: one visitor of a thousand."""
_USUAL = HALF_LIVES.index(4 * 86_400.0)
"""The half-life by which the items of a history are called current or old."""
_LATEST = 3

SHARES = (*(f"live {hours:g} h" for hours in (np.array(HALF_LIVES) / 3600).tolist()), "all time")
CO_VISITS = ("co-visits", "co-visits of the last item")
CONTEXTS = ("history length", "no history", "minutes since the last", "currency of the latest", "currency of the last")


class CoVisits:
    """Where the visitors of the user's latest items were of late, the newest item first.

    An item-to-item neighbourhood on what people did lately (Sarwar et al. 2001), which in session-based
    recommendation is hard to beat (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", 2018).
    Each item's visitors share out 1, discounted by 0.75 for each step back.

    seeds: int32[s], the user's latest items
    n:     positions 0 … n-1 are spoken of
    """

    def __init__(self, seeds: Positions, visits: Visits, n: int) -> None:
        self.seeds = seeds
        self._visits = visits
        self._discounts = _DISCOUNTS[: len(seeds)] / np.maximum(visits.visitors, 1)
        # What is nowhere, or beyond those spoken of, goes to the last place, which nobody asks for.
        stops = visits.stops.ravel()
        self._stops = np.where(stops.view(np.uint32) < n, stops, n)
        weights = np.repeat(self._discounts, visits.visitors * visits.stops.shape[1])
        self._met = np.bincount(self._stops, weights, n + 1)
        of_last = len(self._stops) and int(visits.visitors[0]) * visits.stops.shape[1]
        self._met_after_last = np.bincount(self._stops[:of_last], weights[:of_last], n + 1)

    @classmethod
    def of(cls, query: Query, n: int) -> CoVisits | None:
        """Of the last ten items of the history; None without any, and without live signals."""
        if query.live is None or len(query.history) == 0:
            return None
        seeds = query.history.positions[: -STEPS_BACK - 1 : -1]
        return cls(seeds, query.live.visits(seeds), n)

    def features(self, positions: Indices | None = None) -> NDArray[np.float32]:
        """float32[2, k], of all n without positions: logarithms of how often visitors of all the seeds, and of the
        newest alone, met each."""
        if positions is None:
            found = np.stack([self._met[:-1], self._met_after_last[:-1]])
        else:
            found = np.stack([self._met.take(positions), self._met_after_last.take(positions)])
        shares: NDArray[np.float32] = np.add(found, _LEAST_SHARE).astype(np.float32)
        return np.log(shares, out=shares)

    def nominees(self, most: int) -> NDArray[np.int64]:
        """int64[≤ most]: the most met, in any order."""
        met = np.flatnonzero(self._met[:-1])
        if len(met) <= most:
            return met
        return met[np.argpartition(self._met[met], len(met) - most)[len(met) - most :]]

    def leading(self, positions: Positions, seeds: Mask) -> list[int | None]:
        """Of each position, that of the seeds whose visitors met it most; None where those of none did.

        seeds: bool[s], which may lead
        """
        s, k = len(self.seeds), len(positions)
        column = np.full(int(self._stops.max(initial=0)) + 1, k)
        column[positions[positions < len(column)]] = np.flatnonzero(positions < len(column))
        rows = np.repeat(np.arange(s), self._visits.visitors * self._visits.stops.shape[1])
        met = np.bincount(rows * (k + 1) + column[self._stops], minlength=s * (k + 1)).reshape(s, k + 1)[:, :k]
        shares = met * (self._discounts * seeds)[:, None]
        leaders, most = self.seeds[shares.argmax(axis=0)].tolist(), shares.max(axis=0).tolist()
        return [leader if share > 0 else None for leader, share in zip(leaders, most, strict=True)]


_DISCOUNTS = STEP_DISCOUNT ** np.arange(STEPS_BACK)
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
