"""Splits by time."""

import numpy as np

from models.data.splits import rolling_splits, split_by_time
from tests.recommender_contract import toy_dataset


def test_the_newest_fifth_is_held_out() -> None:
    dataset = toy_dataset()
    earlier, later = split_by_time(dataset)
    assert len(later) == round(len(dataset.interactions) * 0.2)
    assert len(earlier.interactions) + len(later) == len(dataset.interactions)
    assert earlier.interactions.timestamps.max() <= later.timestamps.min()
    assert (earlier.n_users, earlier.n_items) == (dataset.n_users, dataset.n_items)


def test_a_split_inside_the_earlier_part_sees_nothing_later() -> None:
    earlier, later = split_by_time(toy_dataset())
    inner = split_by_time(earlier)
    assert inner.later.timestamps.max() <= later.timestamps.min()
    assert len(inner.later) == round(len(earlier.interactions) * 0.2)


def test_rolling_splits_look_equally_far_ahead_until_the_end() -> None:
    dataset = toy_dataset()
    n = len(dataset.interactions)
    splits = rolling_splits(dataset, (0.5, 0.9))
    assert [len(split.earlier.interactions) for split in splits] == [n // 2, round(n * 0.9)]
    assert [len(split.later) for split in splits] == [round(n * 0.7) - n // 2, n - round(n * 0.9)]


def test_an_empty_dataset_has_an_empty_split_and_no_rolling_ones() -> None:
    dataset = toy_dataset()
    empty = dataset.with_interactions(dataset.interactions.take(np.zeros(len(dataset.interactions), np.bool_)))
    assert len(split_by_time(empty).later) == 0
    assert rolling_splits(empty, (0.5,)) == []
