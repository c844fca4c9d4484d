"""Splits by time: whoever is measured on the future may only have learned from the past."""

from __future__ import annotations

from typing import NamedTuple

from models.data.dataset import Dataset, Interactions

TEST_SHARE = 0.2


class Split(NamedTuple):
    """One moment, the same for all users: what came before it and what came after.

    earlier: the dataset of what came before; positions of users and items stay as they were
    later:   what came after, in time order
    """

    earlier: Dataset
    later: Interactions


def split_by_time(dataset: Dataset, *, later_share: float = TEST_SHARE) -> Split:
    """Cut off the newest `later_share` of the interactions."""
    n = len(dataset.interactions)
    return split_at(dataset, n - round(n * later_share), n)


def split_at(dataset: Dataset, cut: int, until: int) -> Split:
    """The first `cut` interactions against those from `cut` up to `until`."""
    interactions = dataset.interactions
    return Split(dataset.with_interactions(interactions.take(slice(0, cut))), interactions.take(slice(cut, until)))


def rolling_splits(dataset: Dataset, cuts: tuple[float, ...], *, later_share: float = TEST_SHARE) -> list[Split]:
    """Splits at several fractions of the interactions, for choices that one moment alone would leave to chance.

    Each looks `later_share` of all interactions ahead, the last ones less where the dataset ends before.
    """
    n = len(dataset.interactions)
    ends = [(round(n * cut), min(n, round(n * (cut + later_share)))) for cut in cuts]
    return [split_at(dataset, cut, until) for cut, until in ends if 0 < cut < until]
