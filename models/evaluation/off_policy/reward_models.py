"""What a kind of item earns at a place, learned from the log: the mean of what it earned, for DM and DR to lean on.

Simple on purpose. An estimator that corrects the model by weights (DR, cascade-DR) is right whatever the model says, as
long as a decision's own reward had no part in it: so these are fitted on the other half of the users (Chernozhukov and
others 2018, "Double/debiased machine learning").
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 2
PRIOR = 5.0
"""Decisions with the mean reward that are added to each kind's own, where a model is only leant on."""


class Predictions(NamedTuple):
    """What a reward model says of n decisions.

    shown:    float64[n], of the item that was shown
    expected: float64[n], of what the target policy would have shown, on average
    """

    shown: Floats
    expected: Floats


def means_by_kind(kinds: Ints, rewards: Floats, n_kinds: int, *, prior: float) -> Floats:
    """float64[n_kinds]: the mean reward of each, with so many decisions of the mean reward added to it."""
    counts = np.bincount(kinds, minlength=n_kinds)
    overall = rewards.mean() if len(rewards) else 0.0
    sums = np.bincount(kinds, rewards, minlength=n_kinds) + prior * overall
    total = counts + prior
    return np.asarray(np.divide(sums, total, out=np.full(n_kinds, overall), where=total > 0))


def folds_of(users: Ints) -> Ints:
    """int64[n]: 0 … FOLDS-1, the same for all decisions of a user."""
    _, number = np.unique(users, return_inverse=True)
    return number % FOLDS


def crossed(kinds: Ints, rewards: Floats, target_kinds: Floats, users: Ints) -> Predictions:
    """Of each decision, by a model that was fitted on other users."""
    folds = folds_of(users)
    shown, expected = np.empty(len(rewards)), np.empty(len(rewards))
    for fold in range(FOLDS):
        inside, outside = folds == fold, folds != fold
        model = means_by_kind(kinds[outside], rewards[outside], target_kinds.shape[1], prior=PRIOR)
        shown[inside], expected[inside] = model[kinds[inside]], target_kinds[inside] @ model
    return Predictions(shown, expected)


def crossed_to_go(kinds: Ints, rewards: Floats, target_kinds: Floats, users: Ints) -> list[Predictions]:
    """Place by place: what will be earned from there on if the target policy goes on, by models fitted on other users.

    kinds, rewards: [n, k]; target_kinds: [n, k, b]. Fitted from the last place up, each on what the item there earned
    and what the model below says of the rest (Kiyohara and others 2022, section 4).
    """
    places, n_kinds = rewards.shape[1], target_kinds.shape[2]
    folds = folds_of(users)
    shown, expected = np.empty_like(rewards), np.empty_like(rewards)
    for fold in range(FOLDS):
        inside, outside = folds == fold, folds != fold
        below = np.zeros(int(outside.sum()))
        for place in range(places - 1, -1, -1):
            to_go = rewards[outside, place] + below
            model = means_by_kind(kinds[outside, place], to_go, n_kinds, prior=PRIOR)
            below = target_kinds[outside, place] @ model
            shown[inside, place] = model[kinds[inside, place]]
            expected[inside, place] = target_kinds[inside, place] @ model
    return [Predictions(shown[:, place], expected[:, place]) for place in range(places)]
