"""What the blend looks at: an item's shares of what people do now, what its sources say, and the user's situation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Positions, Query, Scores
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


class Step(NamedTuple):
    """One item of a history, and where its visitors were of late.

    items:  int32[k], ascending; all of them positions below the number asked for
    shares: float32[k], of the visitors, discounted by how many steps back the item lies
    """

    position: int
    items: Positions
    shares: Scores


def steps_back(query: Query, n: int) -> list[Step]:
    """Of the last ten items of the history, the newest first; n: positions 0 … n-1 are spoken of.

    None without live signals. Each step back is discounted by 0.75.
    """
    if query.live is None:
        return []
    steps = []
    for back, position in enumerate(query.history.positions[-STEPS_BACK:][::-1].tolist()):
        items, shares = query.live.covisited(position)
        known = int(np.searchsorted(items, n))
        steps.append(Step(position, items[:known], shares[:known] * np.float32(STEP_DISCOUNT**back)))
    return steps


def co_visits(steps: Sequence[Step], n: int) -> NDArray[np.float32]:
    """float32[2, n]: logarithms of how often visitors of the user's latest items, and of the last one, met each item.

    An item-to-item neighbourhood on what people did lately (Sarwar et al. 2001), which in session-based
    recommendation is hard to beat (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", 2018).
    """
    met = np.full((2, n), _LEAST_SHARE, np.float32)
    for step in steps:
        met[0, step.items] += step.shares
    for step in steps[:1]:
        met[1, step.items] += step.shares
    return np.log(met, out=met)


def leading_step(steps: Sequence[Step], positions: Positions) -> list[int | None]:
    """Of each position, the item of the steps whose visitors met it most; None where none did."""
    shares = np.zeros((len(steps) + 1, len(positions)), np.float32)
    for row, step in enumerate(steps, start=1):
        places = np.searchsorted(step.items, positions)
        met = np.isin(positions, step.items)
        shares[row, met] = step.shares[places[met]]
    leaders = [None, *(step.position for step in steps)]
    return [leaders[row] for row in shares.argmax(axis=0).tolist()]


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
        return np.clip(found, -_WIDEST, _WIDEST, out=found)
