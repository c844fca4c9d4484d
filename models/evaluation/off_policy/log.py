"""What an estimate is made from: decisions with what they earned, and how likely two policies were to make them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class WrongLog(ValueError):
    """The log contradicts itself, or what was shown contradicts the logged probabilities."""


class MissingSupport(ValueError):
    """The target policy does what the log holds too little of, or nothing at all."""


@dataclass(frozen=True, slots=True)
class SingleLog:
    """n decisions on one item each.

    rewards:       float64[n]
    logged:        float64[n], the probability of the item that was shown under the policy that served, above 0
    target:        float64[n], the same under the target policy
    users:         int64[n], whose decision it was; those of one user are not independent
    kinds:         int64[n], of the items shown, 0 … b-1: what a reward model can tell apart
    logged_kinds:  float64[n, b], the probability of each kind under the policy that served
    target_kinds:  float64[n, b], the same under the target policy
    """

    rewards: Floats
    logged: Floats
    target: Floats
    users: Ints
    kinds: Ints
    logged_kinds: Floats
    target_kinds: Floats

    def __post_init__(self) -> None:
        _refuse_wrong(self, self.rewards.shape)

    @property
    def weights(self) -> Floats:
        """float64[n]: how much rather the target policy would have shown the item."""
        return self.target / self.logged


@dataclass(frozen=True, slots=True)
class SlateLog:
    """n lists of k places, from the top. A place that a promotion took, or that a shorter list lacks, has probability 1
    under every policy and a kind of its own, and earns what it earned, or 0.

    rewards:          float64[n, k]
    logged:           float64[n, k], the probability of the item at its place, given those above it, when it was served
    target:           float64[n, k], the same under the target policy
    logged_marginals: float64[n, k], the probability of the item at its place, whatever is above it
    target_marginals: float64[n, k], the same under the target policy
    users:            int64[n]
    kinds:            int64[n, k], of the items shown, 0 … b-1
    logged_kinds:     float64[n, k, b], the probability of each kind at each place, given the items shown above it
    target_kinds:     float64[n, k, b], the same under the target policy
    """

    rewards: Floats
    logged: Floats
    target: Floats
    logged_marginals: Floats
    target_marginals: Floats
    users: Ints
    kinds: Ints
    logged_kinds: Floats
    target_kinds: Floats

    def __post_init__(self) -> None:
        _refuse_wrong(self, self.rewards.shape)

    @property
    def weights(self) -> Floats:
        """float64[n, k]: how much rather the target policy would have shown the items down to each place."""
        return np.asarray(np.cumprod(self.target / self.logged, axis=1))

    @property
    def marginal_weights(self) -> Floats:
        """float64[n, k]: how much rather the target policy would have shown the item at its place."""
        return self.target_marginals / self.logged_marginals

    def place(self, place: int) -> SingleLog:
        """One place, from 0, as a decision of its own; the items above it are part of what it was decided in."""
        return SingleLog(
            self.rewards[:, place],
            self.logged[:, place],
            self.target[:, place],
            self.users,
            self.kinds[:, place],
            self.logged_kinds[:, place],
            self.target_kinds[:, place],
        )


PROBABILITIES = ("logged", "target", "logged_marginals", "target_marginals", "logged_kinds", "target_kinds")
_ROUNDING = 1e-6


def _refuse_wrong(log: SingleLog | SlateLog, shape: tuple[int, ...]) -> None:
    arrays = {field.name: getattr(log, field.name) for field in fields(log)}
    if not log.rewards.size:
        raise MissingSupport("the log is empty")
    for name, array in arrays.items():
        expected = shape[:1] if name == "users" else shape
        if array.shape[: len(expected)] != expected or array.ndim != len(expected) + name.endswith("_kinds"):
            raise WrongLog(f"{name} has the shape {array.shape}, which does not go with rewards of {shape}")
        if not np.isfinite(array).all():
            raise WrongLog(f"{name}: {np.count_nonzero(~np.isfinite(array))} values are not finite")
    for name in PROBABILITIES:
        if name in arrays and (arrays[name].min() < 0 or arrays[name].max() > 1 + _ROUNDING):
            raise WrongLog(f"{name}: probabilities from {arrays[name].min():g} to {arrays[name].max():g}")
    for name in ("logged", "logged_marginals"):
        if name in arrays and arrays[name].min() <= 0:
            count = np.count_nonzero(arrays[name] <= 0)
            raise WrongLog(f"{name}: {count} items were shown that had no chance to be shown")
    for name in ("logged_kinds", "target_kinds"):
        sums = arrays[name].sum(axis=-1)
        if np.abs(sums - 1).max() > _ROUNDING:
            raise WrongLog(
                f"{name}: the probabilities of all kinds add up to {sums.min():g} … {sums.max():g}, not to 1"
            )
