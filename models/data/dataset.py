"""A Dataset: everything a fit may look at, as arrays, in time order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.contracts import History


@dataclass(frozen=True, slots=True)
class Interactions:
    """One row per interaction, sorted by timestamp.

    users:      int32[n], positions 0 … n_users-1
    items:      int32[n], positions 0 … n_items-1
    weights:    float32[n], strength of the feedback; negative for dislikes
    signs:      int8[n], +1 positive, -1 negative, 0 neither
    values:     float32[n], the rating (0–5) or listened fraction as it was given, NaN where there is none
    timestamps: float64[n], unix seconds
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    weights: NDArray[np.float32]
    signs: NDArray[np.int8]
    values: NDArray[np.float32]
    timestamps: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Interactions:
        """The interactions chosen by a mask, indices or a slice."""
        return Interactions(
            self.users[which], self.items[which], self.weights[which],
            self.signs[which], self.values[which], self.timestamps[which],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ItemTable:
    """What is known of items besides interactions; every list has one entry per item.

    published: float64[n], unix seconds, NaN where unknown
    features:  float32[n, d] given by the owner (image vectors, say), rows of NaN where absent; d may be 0
    """

    categories: list[tuple[str, ...]]
    tags: list[tuple[str, ...]]
    texts: list[str]
    creators: list[str | None]
    kinds: list[str | None]
    published: NDArray[np.float64]
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.categories)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Interactions with the items they are about. `users` and `items` count positions, not rows seen."""

    interactions: Interactions
    items: ItemTable
    n_users: int

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def ends_at(self) -> float:
        """Unix seconds of the newest interaction: the "now" of everything fitted on this dataset."""
        return float(self.interactions.timestamps[-1]) if len(self.interactions) else 0.0

    def with_interactions(self, interactions: Interactions) -> Dataset:
        return replace(self, interactions=interactions)

    def matrix(self, values: NDArray[np.float32]) -> sparse.csr_array:
        """float32[n_users, n_items] with `values` (one per interaction) at each pair's latest state."""
        newest = latest_per_pair(self.interactions)
        kept = self.interactions.take(newest)
        return sparse.csr_array(
            (values[newest], (kept.users, kept.items)), shape=(self.n_users, self.n_items), dtype=np.float32
        )

    def histories(self) -> list[History]:
        """One History per user, distinct items by their latest state, oldest first."""
        kept = self.interactions.take(latest_per_pair(self.interactions))
        order = np.argsort(kept.users, kind="stable")
        kept = kept.take(order)
        bounds = np.searchsorted(kept.users, np.arange(self.n_users + 1))
        return [
            History(kept.items[a:b], kept.weights[a:b], kept.signs[a:b], kept.timestamps[a:b])
            for a, b in pairwise(bounds)
        ]


def latest_per_pair(interactions: Interactions) -> NDArray[np.int64]:
    """int64[m]: indices of the last interaction of each (user, item), in time order."""
    _, last_from_end = np.unique(_pairs(interactions)[::-1], return_index=True)
    return np.sort(len(interactions) - 1 - last_from_end)


def first_per_pair(interactions: Interactions) -> NDArray[np.int64]:
    """int64[m]: indices of the first interaction of each (user, item), in time order."""
    return np.sort(np.unique(_pairs(interactions), return_index=True)[1])


def _pairs(interactions: Interactions) -> NDArray[np.int64]:
    """int64[n]: one number per (user, item)."""
    return interactions.users.astype(np.int64) * (int(interactions.items.max(initial=-1)) + 1) + interactions.items
