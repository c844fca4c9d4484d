"""How a fit weighs its signals without looking ahead: the newest interactions of its own dataset are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import History, Parameters, Positions, Scores
from models.data.dataset import Dataset
from models.data.splits import split_by_time

DAY = 86_400.0
HALF_LIVES = (1.0, 3.0, 7.0, 30.0, 90.0)
"""Days after which an interaction counts half in a trend: tweets and news at one end, a film library at the other."""
TREND_WEIGHTS = (0.1, 0.25, 0.5, 1.0)

_HELD_OUT = 0.1
_FEWEST_CASES = 30
"""Below this a choice would be noise: the defaults stand."""
_MOST_CASES = 1_200
_MOST_SCORES = 15_000_000
"""Cases × items: bounds the time of a choice on a large catalogue (some ten seconds)."""
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
        return len(self.cases) >= _FEWEST_CASES


class Mix(NamedTuple):
    """What each signal weighs in a score.

    weights:      one per signal of the recommender's own
    trend_weight: of `trend(dataset, half_life)`
    ndcg:         NDCG@10 on the held-out cases; None where there were too few to choose by
    """

    weights: tuple[float, ...]
    trend_weight: float
    half_life: float
    ndcg: float | None = None

    def prior(self, dataset: Dataset) -> Scores:
        """float32[n_items]: the weighted trend at the end of the dataset."""
        return np.float32(self.trend_weight) * trend(dataset, self.half_life)

    def figures(self) -> Parameters:
        """For the manifest: what was chosen, and how well it did."""
        return {**self._asdict(), "weights": list(self.weights)}


def hold_out_newest(dataset: Dataset, *, seed: int) -> HeldOut:
    """Cut off the newest tenth; targets are the items first met there and not disliked."""
    earlier, later = split_by_time(dataset, later_share=_HELD_OUT)
    histories = earlier.histories()
    kept = later.take(later.signs >= 0)
    by_user = np.argsort(kept.users, kind="stable")
    users, starts = np.unique(kept.users[by_user], return_index=True)
    cases = [
        Case(histories[user], targets)
        for user, items in zip(users, np.split(kept.items[by_user], starts[1:]), strict=True)
        if len(histories[user]) and len(targets := np.setdiff1d(items, histories[user].positions))
    ]
    most = max(_FEWEST_CASES, min(_MOST_CASES, _MOST_SCORES // max(1, dataset.n_items)))
    chosen = np.random.default_rng(seed).permutation(len(cases))[:most]
    return HeldOut(earlier, [cases[case] for case in chosen])


def choose_mix(
    held_out: HeldOut,
    signals: Callable[[History], NDArray[np.float32]],
    choices: Sequence[tuple[float, ...]],
) -> Mix:
    """The mix of signals and trend that ranks highest what users did next.

    signals: a history → float32[s, n_items]
    choices: weights of the s signals, each tried without a trend and with every trend; the first of equals wins
    """
    trends = np.stack([trend(held_out.earlier, half_life) for half_life in HALF_LIVES])
    options = [(weights, 0.0, HALF_LIVES[-1]) for weights in choices]
    options += list(product(choices, TREND_WEIGHTS, HALF_LIVES))
    mixes = np.stack([_row(*option) for option in options])
    gained = np.zeros(len(options))
    for history, targets in held_out.cases:
        scores = mixes @ np.vstack([signals(history), trends])
        scores[:, history.positions] = -np.inf
        gained += ndcg(scores, targets)
    best = int(gained.argmax())
    return Mix(*options[best], ndcg=float(gained[best] / len(held_out.cases)))


def _row(weights: tuple[float, ...], trend_weight: float, half_life: float) -> NDArray[np.float32]:
    """float32[s + trends]"""
    trends = [trend_weight if half_life == tried else 0.0 for tried in HALF_LIVES]
    return np.array([*weights, *trends], np.float32)


def ndcg(scores: NDArray[np.float32], targets: Positions) -> NDArray[np.float64]:
    """float64[k]: NDCG@10 of each row of float32[k, n_items]; ties count against the target.

    The gain is 1 for each target (Järvelin and Kekäläinen 2002).
    """
    above = np.stack([(scores >= scores[:, [target]]).sum(axis=1) - 1 for target in targets], axis=1)
    gains = np.where(above < _CUT, 1 / np.log2(above + 2), 0).sum(axis=1)
    ideal = (1 / np.log2(np.arange(min(_CUT, len(targets))) + 2)).sum()
    return np.asarray(gains / ideal)


def trend(dataset: Dataset, half_life: float) -> Scores:
    """float32[n_items]: log(1 + interactions), each halved for every `half_life` days before the last one."""
    age = (dataset.ends_at - dataset.interactions.timestamps) / DAY
    counts = np.bincount(dataset.interactions.items, 0.5 ** (age / half_life), minlength=dataset.n_items)
    return np.log1p(counts).astype(np.float32)
