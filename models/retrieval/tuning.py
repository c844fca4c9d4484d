"""How a fit weighs its signals without looking ahead: the newest interactions of its own dataset are held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import History, Positions, Scores
from models.data.dataset import Dataset

DAY = 86_400.0
HALF_LIVES = (1.0, 3.0, 7.0, 30.0, 90.0)
"""Days after which an interaction counts half in a trend: news at one end, a film library at the other."""

_HELD_OUT = 0.1
_MOST_USERS = 800
_FEWEST_USERS = 30
"""Below this a choice would be noise: the defaults stand."""
_CUT = 10


class Case(NamedTuple):
    """A user who was known before the cut and came back after it."""

    history: History
    targets: Positions


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The dataset without its newest interactions, and what a sample of its users did in them."""

    earlier: Dataset
    cases: list[Case]

    @property
    def is_telling(self) -> bool:
        """Whether there are enough cases to choose by."""
        return len(self.cases) >= _FEWEST_USERS


def hold_out_newest(dataset: Dataset, *, seed: int) -> HeldOut:
    """Cut off the newest tenth; targets are the items first met there and not disliked."""
    cut = int(len(dataset.interactions) * (1 - _HELD_OUT))
    earlier = dataset.with_interactions(dataset.interactions.take(slice(0, cut)))
    newer = dataset.interactions.take(slice(cut, None))
    histories = earlier.histories()
    cases = [
        Case(histories[user], targets)
        for user in np.unique(newer.users)
        if len(histories[user])
        and len(
            targets := np.setdiff1d(newer.items[(newer.users == user) & (newer.signs >= 0)], histories[user].positions)
        )
    ]
    chosen = np.random.default_rng(seed).permutation(len(cases))[:_MOST_USERS]
    return HeldOut(earlier, [cases[case] for case in chosen])


def best_mix(
    held_out: HeldOut, signals: Callable[[History], NDArray[np.float32]], mixes: NDArray[np.float32]
) -> tuple[int, float]:
    """The row of `mixes` whose weighted sum of the signals ranks what users did next best, and its NDCG@10.

    signals: a history → float32[s, n_items]
    mixes:   float32[k, s]; the first of equals wins, so put the plainer ones first
    """
    gained = np.zeros(len(mixes))
    for history, targets in held_out.cases:
        scores = mixes @ signals(history)
        scores[:, history.positions] = -np.inf
        gained += ndcg(scores, targets)
    best = int(gained.argmax())
    return best, float(gained[best] / len(held_out.cases))


def ndcg(scores: NDArray[np.float32], targets: Positions) -> NDArray[np.float64]:
    """float64[k]: NDCG@10 of each row of float32[k, n_items]; ties count against the target."""
    own = scores[:, targets]
    above = np.stack([(scores >= own[:, [t]]).sum(axis=1) - 1 for t in range(len(targets))], axis=1)
    gains = np.where(above < _CUT, 1 / np.log2(above + 2), 0).sum(axis=1)
    ideal = (1 / np.log2(np.arange(min(_CUT, len(targets))) + 2)).sum()
    return np.asarray(gains / ideal)


def trend(dataset: Dataset, half_life: float) -> Scores:
    """float32[n_items]: log(1 + interactions), each halved for every `half_life` days before the last one."""
    age = (dataset.ends_at - dataset.interactions.timestamps) / DAY
    counts = np.bincount(dataset.interactions.items, 0.5 ** (age / half_life), minlength=dataset.n_items)
    return np.log1p(counts).astype(np.float32)
