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
from models.data.splits import Split, rolling_splits, split_by_time
from models.retrieval.popularity_kinds import Kind, masses

DEFAULT_TREND_WEIGHT = 0.25
TREND_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)

_HELD_OUT = 0.1
_CUTS = (0.7, 0.8, 0.9)
"""Moments to choose at: what one moment favours is partly chance."""
_FEWEST_CASES = 30
"""Below this a choice would be noise: the defaults stand."""
_MOST_CASES = 2_000
_POOL = 200
"""Items of each signal that a mix may rank: whatever makes its top ten is among the best of some signal."""
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
    trend_weight: of `trend(dataset, kind)`
    kind:         how a trend counts
    ndcg:         NDCG@10 on the held-out cases; None where there were too few to choose by
    """

    weights: tuple[float, ...]
    trend_weight: float
    kind: Kind
    ndcg: float | None = None

    def prior(self, dataset: Dataset) -> Scores:
        """float32[n_items]: the weighted trend at the end of the dataset."""
        return np.float32(self.trend_weight) * trend(dataset, self.kind)

    def figures(self) -> Parameters:
        """For the manifest: what was chosen, and how well it did."""
        return {**self._asdict(), "weights": list(self.weights), "kind": self.kind.label}


class Trial(NamedTuple):
    """A moment to choose at, and float32[s, n_items] of a history by a recommender fitted on what came before."""

    held_out: HeldOut
    signals: Callable[[History], NDArray[np.float32]]


def hold_out_newest(dataset: Dataset, *, seed: int) -> HeldOut:
    """Cut off the newest tenth; targets are the items first met there and not disliked."""
    return _held_out(split_by_time(dataset, later_share=_HELD_OUT), _MOST_CASES, seed)


def hold_out_in_turn(dataset: Dataset, *, seed: int) -> list[HeldOut]:
    """The same at three moments, each foretelling a tenth; only those with enough cases to choose by."""
    splits = rolling_splits(dataset, _CUTS, later_share=_HELD_OUT)
    tried = [_held_out(split, _MOST_CASES // len(_CUTS), seed) for split in splits]
    return [held_out for held_out in tried if held_out.is_telling]


def _held_out(split: Split, most_cases: int, seed: int) -> HeldOut:
    histories = split.earlier.histories()
    kept = split.later.take(split.later.signs >= 0)
    by_user = np.argsort(kept.users, kind="stable")
    users, starts = np.unique(kept.users[by_user], return_index=True)
    cases = [
        Case(histories[user], targets)
        for user, items in zip(users, np.split(kept.items[by_user], starts[1:]), strict=False)
        if len(histories[user]) and len(targets := np.setdiff1d(items, histories[user].positions))
    ]
    chosen = np.random.default_rng(seed).permutation(len(cases))[:most_cases]
    return HeldOut(split.earlier, [cases[case] for case in chosen])


def choose_mix(trials: Sequence[Trial], kind: Kind, choices: Sequence[tuple[float, ...]], *, concession: float) -> Mix:
    """The mix least led by the trend among those that rank nearly best what users did next.

    Popularity has a recommender of its own: what a personal one adds is the rest.

    choices:    weights of the s signals, each tried with every weight of the trend
    concession: share of the best NDCG@10, over all cases of all trials, that may be given up for it
    """
    options = list(product(choices, TREND_WEIGHTS))
    mixes = np.array([(*weights, trend_weight) for weights, trend_weight in options], np.float32)
    gained = np.sum([_gained(trial, mixes, trend(trial.held_out.earlier, kind)) for trial in trials], axis=0)
    mean = gained / sum(len(trial.held_out.cases) for trial in trials)
    led_by_trend = mixes[:, -1] / mixes.sum(axis=1)
    near = np.flatnonzero(mean >= (1 - concession) * mean.max())
    chosen = min(near.tolist(), key=lambda option: (led_by_trend[option], -mean[option]))
    return Mix(*options[chosen], kind=kind, ndcg=float(mean[chosen]))


def _gained(trial: Trial, mixes: NDArray[np.float32], trending: Scores) -> NDArray[np.float64]:
    """float64[k]: NDCG@10 of each of float32[k, s + 1] mixes, summed over the cases."""
    gained = np.zeros(len(mixes))
    for history, targets in trial.held_out.cases:
        signals = np.vstack([trial.signals(history), trending])
        pool = np.setdiff1d(np.concatenate([_best(signals), targets]), history.positions)
        gained += ndcg(mixes @ signals[:, pool], np.searchsorted(pool, targets))
    return gained


def _best(signals: NDArray[np.float32]) -> Positions:
    """int32[≤ s · _POOL]: the items that lead in any of the signals."""
    size = min(_POOL, signals.shape[1])
    return np.asarray(np.unique(np.argpartition(-signals, size - 1, axis=1)[:, :size]), np.int32)


def ndcg(scores: NDArray[np.float32], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64[k]: NDCG@10 of each row of float32[k, n_items]; ties count against the target.

    The gain is 1 for each target (Järvelin and Kekäläinen 2002).
    """
    above = np.stack([(scores >= scores[:, [target]]).sum(axis=1) - 1 for target in targets], axis=1)
    gains = np.where(above < _CUT, 1 / np.log2(above + 2), 0).sum(axis=1)
    ideal = (1 / np.log2(np.arange(min(_CUT, len(targets))) + 2)).sum()
    return np.asarray(gains / ideal)


def trend(dataset: Dataset, kind: Kind) -> Scores:
    """float32[n_items]: log(1 + popularity), so that it adds to a taste as odds do."""
    return np.log1p(masses(dataset, kind)).astype(np.float32)
