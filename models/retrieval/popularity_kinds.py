"""What "popular" may mean, and which meaning foretells best what people do next."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.dataset import Dataset, Interactions, latest_per_pair
from models.data.gains import CUT_OFF, gains_at
from models.data.splits import Split, rolling_splits

DAY = 86_400.0
_CUTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FEWEST_USERS = 30
"""Below this the choice would be noise: the default stands."""


class Kind(NamedTuple):
    """A way to weigh an interaction by its age.

    all:    every one counts 1
    window: those of the last `days` count 1
    decay:  each counts 1 + weight, so that what people disliked hardly counts, halved for every `days` of age
    """

    shape: Literal["all", "window", "decay"]
    days: float = 0.0

    @property
    def label(self) -> str:
        """`all`, `window:3d`, `decay:2d`."""
        return self.shape if self.shape == "all" else f"{self.shape}:{self.days:g}d"


DEFAULT = Kind("decay", 8)
KINDS = (
    DEFAULT,
    Kind("all"),
    *(Kind("window", days) for days in (1, 3, 7, 14, 28)),
    *(Kind("decay", days) for days in (0.25, 0.5, 1, 2, 4, 16, 32, 64)),
)


def masses(dataset: Dataset, kind: Kind) -> NDArray[np.float64]:
    """float64[n_items]: the summed weights, "now" being the dataset's newest interaction."""
    interactions = dataset.interactions
    sums = np.bincount(interactions.items, _weights(interactions, kind), minlength=dataset.n_items)
    return sums.astype(np.float64)  # numpy counts in integers where there is nothing to weigh


def _weights(interactions: Interactions, kind: Kind) -> NDArray[np.float64]:
    n = len(interactions)
    age = (interactions.timestamps[-1] - interactions.timestamps) / DAY if n else np.empty(0)
    if kind.shape == "all":
        return np.ones(n)
    if kind.shape == "window":
        return np.where(age <= kind.days, 1.0, 0.0)
    return np.asarray(np.maximum(1.0 + interactions.weights, 0.0) * np.exp2(-age / kind.days))


def choose_kind(dataset: Dataset) -> Kind:
    """The kind with the highest NDCG@10 over several moments inside the dataset; the first of equals."""
    splits = rolling_splits(dataset, _CUTS)
    futures = [future for split in splits if len(future := Future.of(split)) >= _FEWEST_USERS]
    if not futures:
        return DEFAULT
    return max(KINDS, key=lambda kind: np.mean([future.ndcg(masses(future.earlier, kind)) for future in futures]))


class Future(NamedTuple):
    """What users did after a moment, ready to judge lists that are the same for everyone but for seen items.

    users, items: int32[p], each (user, item) first met after the moment, users numbered 0 … n_users-1
    seen:         int64[s], ascending keys user · n_items + item of what they had met before
    """

    earlier: Dataset
    users: NDArray[np.int64]
    items: NDArray[np.int32]
    seen_users: NDArray[np.int64]
    seen_items: NDArray[np.int32]

    @classmethod
    def of(cls, split: Split) -> Future:
        n = split.earlier.n_items
        later = split.later.take(latest_per_pair(split.later))
        past = split.earlier.interactions
        past = past.take(latest_per_pair(past))
        is_new = ~np.isin(_keys(later, n), _keys(past, n))
        present, users = np.unique(later.users[is_new], return_inverse=True)
        returns = np.isin(past.users, present)
        return cls(
            split.earlier, users, later.items[is_new],
            np.searchsorted(present, past.users[returns]), past.items[returns],
        )  # fmt: skip

    def __len__(self) -> int:
        """Users to judge by."""
        return int(self.users.max()) + 1 if len(self.users) else 0

    def ndcg(self, scores: NDArray[np.float64]) -> float:
        """Mean NDCG@10 of the list that the scores order, each user's seen items left out."""
        n = len(scores)
        rank = np.empty(n, np.int64)
        rank[np.argsort(-scores, kind="stable")] = np.arange(n)
        seen = np.sort(self.seen_users * n + rank[self.seen_items])
        first = np.searchsorted(seen, self.users * n)
        place = rank[self.items] - (np.searchsorted(seen, self.users * n + rank[self.items]) - first)
        wanted = np.bincount(self.users)
        ideal = np.cumsum(gains_at(np.arange(CUT_OFF)))[np.minimum(wanted, CUT_OFF) - 1]
        return float(np.mean(np.bincount(self.users, gains_at(place)) / ideal))


def _keys(interactions: Interactions, n_items: int) -> NDArray[np.int64]:
    return interactions.users.astype(np.int64) * n_items + interactions.items
