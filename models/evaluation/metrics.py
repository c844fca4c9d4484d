"""What a list is worth: accuracy for each user, breadth of all lists, and how sure a mean is.

NDCG with binary gains after Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002);
intervals by the percentile bootstrap of Efron (1979), users being what is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import Mask, Positions

Lists = Positions
"""int32[users, k], best first, padded with -1 behind a list that is shorter."""


class Estimate(NamedTuple):
    """A mean over users and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def hits(lists: Lists, relevant: list[Positions]) -> Mask:
    """bool[users, k]: whether the item at each place is one of the user's relevant ones."""
    wanted = np.concatenate([np.empty(0, np.int32), *relevant]).astype(np.int64)
    users = np.repeat(np.arange(len(relevant), dtype=np.int64), [len(items) for items in relevant])
    width = 2 + max(int(lists.max(initial=0)), int(wanted.max(initial=0)))
    keys = np.arange(len(lists), dtype=np.int64)[:, None] * width + lists
    return np.isin(keys, users * width + wanted) & (lists >= 0)


def ndcg_at(cut: int, hit: Mask, n_relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[users]; 1 where the first min(cut, n_relevant) places are all hits."""
    discounts = 1 / np.log2(np.arange(cut) + 2)
    gained = hit[:, :cut] @ discounts[: hit.shape[1]]
    return np.asarray(gained / np.cumsum(discounts)[np.minimum(n_relevant, cut) - 1])


def recall_at(cut: int, hit: Mask, n_relevant: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[users]: the share of the user's relevant items that are in the first `cut` places."""
    return np.asarray(hit[:, :cut].sum(axis=1) / n_relevant)


def reciprocal_rank_at(cut: int, hit: Mask) -> NDArray[np.float64]:
    """float64[users]: 1 / place of the first hit, 0 where there is none up to `cut`."""
    first = hit[:, :cut].argmax(axis=1)
    return np.where(hit[:, :cut].any(axis=1), 1 / (first + 1.0), 0.0)


def coverage_at(cut: int, lists: Lists, n_items: int) -> float:
    """The share of the catalogue that is in anybody's first `cut` places."""
    shown = np.unique(lists[:, :cut])
    return float((shown >= 0).sum() / n_items) if n_items else 0.0


def novelty_at(cut: int, lists: Lists, counts: NDArray[np.int64]) -> float:
    """Mean of -log2 p over the first `cut` places, in bits; 0 for empty lists.

    counts: int64[n_items], interactions in the training data; p is an item's share of them, with one added to each
    """
    bits = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    shown = lists[:, :cut]
    return float(bits[shown[shown >= 0]].mean()) if (shown >= 0).any() else 0.0


def bootstrap(per_user: NDArray[np.float64], *, seed: int, draws: int = 1_000) -> Estimate:
    """The mean, and where 95 % of the means lie when users are drawn again with replacement."""
    n = len(per_user)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.array([per_user[rng.integers(0, n, n)].mean() for _ in range(draws)])
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(per_user.mean()), float(low), float(high))
