"""What an estimator is called and assumes, and what it hands on: a value of each decision; their mean is its answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Method(NamedTuple):
    """An estimator: its short name, what must hold for it to be right, and where it comes from."""

    name: str
    assumption: str
    source: str


class Weighed(NamedTuple):
    """An estimate before its interval.

    values:  float64[n], whose mean is the estimate and whose spread is its error; linearised where it is a ratio
    weights: float64[n, m], what decisions were weighted with: a column for each place where places have their own
    is_importance: whether the weights are ratios of probabilities, which are 1 on average if these are right
    unseen:  the share of what the target policy shows that the estimator has never seen and guesses
    """

    method: Method
    values: Floats
    weights: Floats
    is_importance: bool = True
    unseen: float = 0.0


def weighted(method: Method, weights: Floats, rewards: Floats) -> Weighed:
    """Rewards [n, k] times weights [n, k] or [n, 1], summed over places."""
    return Weighed(method, (weights * rewards).sum(axis=1), weights)


def self_normalised(method: Method, weights: Floats, rewards: Floats) -> Weighed:
    """Place by place, the weighted mean of rewards, weights being divided by their sum; linearised around it.

    Biased by something like 1/n, and less noisy: a log that happens to hold too much of what the target policy likes
    counts no more than another (Swaminathan and Joachims 2015).
    """
    means = weights.mean(axis=0)
    earned = np.divide((weights * rewards).mean(axis=0), means, out=np.zeros(rewards.shape[1]), where=means > 0)
    deviations = np.divide(weights, means, out=np.zeros_like(weights), where=means > 0) * (rewards - earned)
    return Weighed(method, earned.sum() + deviations.sum(axis=1), weights)
