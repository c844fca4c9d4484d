"""What the blend looks at: an item's shares of what people do now, what its sources say, and the user's situation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Query, Scores
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


def co_visits(query: Query, n: int) -> NDArray[np.float32]:
    """float32[2, n]: logarithms of how often visitors of the user's latest items, and of the last one, met each item.

    Over the last ten items of the history, each step back discounted by 0.75; without live signals nobody met
    anything. An item-to-item neighbourhood on what people did lately (Sarwar et al. 2001), which in session-based
    recommendation is hard to beat (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", 2018).
    """
    met = np.zeros((2, n), np.float32)
    if query.live is not None:
        latest = query.history.positions[-STEPS_BACK:][::-1].tolist()
        for step, position in enumerate(latest):
            items, shares = query.live.covisited(position)
            known = items < n
            met[0, items[known]] += shares[known] * np.float32(STEP_DISCOUNT**step)
            if step == 0:
                met[1, items[known]] = shares[known]
    return np.asarray(np.log(met + np.float32(_LEAST_SHARE)), np.float32)


def context_of(query: Query, log_shares: Scores) -> NDArray[np.float32]:
    """float32[5], in the order of CONTEXTS: how well the user is known, how long ago they came, how current their
    taste is (the logarithm of what share their latest items have now)."""
    history = query.history
    latest = history.positions[history.positions < log_shares.shape[1]][-_LATEST:]
    if len(latest) == 0:
        return np.array([0, 1, 0, 0, 0], np.float32)
    currency = log_shares[_USUAL, latest]
    minutes = max(query.at - float(history.timestamps[-1]), 0.0) / 60
    return np.array([np.log1p(len(history)), 0, np.log1p(minutes), currency.mean(), currency[-1]], np.float32)


_WIDEST = 4.0
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
        bounded: Scores = np.clip(found, -_WIDEST, _WIDEST)
        return bounded
