"""Metrics against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.evaluation.metrics import (
    bootstrap,
    coverage_at,
    hits,
    ndcg_at,
    novelty_at,
    recall_at,
    reciprocal_rank_at,
)

LISTS = np.array([[4, 2, 7], [0, 1, -1], [5, -1, -1]], np.int32)
RELEVANT = [np.array([2, 9], np.int32), np.array([0, 1, 3], np.int32), np.array([6], np.int32)]
HIT = np.array([[False, True, False], [True, True, False], [False, False, False]])
N_RELEVANT = np.array([2, 3, 1])


def test_hits() -> None:
    assert hits(LISTS, RELEVANT).tolist() == HIT.tolist()


def test_another_users_relevant_item_is_no_hit() -> None:
    assert not hits(np.array([[1], [2]], np.int32), [np.array([2], np.int32), np.array([1], np.int32)]).any()


def test_padding_is_no_hit() -> None:
    assert not hits(np.array([[-1, -1]], np.int32), [np.array([0], np.int32)]).any()


def test_ndcg() -> None:
    second = 1 / math.log2(3)
    expected = [second / (1 + second), (1 + second) / (1 + second + 0.5), 0.0]
    assert ndcg_at(3, HIT, N_RELEVANT) == pytest.approx(expected)


def test_ndcg_is_one_when_the_list_can_not_be_better() -> None:
    assert ndcg_at(2, np.array([[True, True, False]]), np.array([9])) == pytest.approx([1.0])


def test_recall_and_reciprocal_rank() -> None:
    assert recall_at(3, HIT, N_RELEVANT) == pytest.approx([1 / 2, 2 / 3, 0])
    assert recall_at(1, HIT, N_RELEVANT) == pytest.approx([0, 1 / 3, 0])
    assert reciprocal_rank_at(3, HIT) == pytest.approx([1 / 2, 1, 0])
    assert reciprocal_rank_at(1, HIT) == pytest.approx([0, 1, 0])


def test_coverage_counts_items_not_padding() -> None:
    assert coverage_at(2, LISTS, 10) == 5 / 10
    assert coverage_at(2, np.full((2, 2), -1, np.int32), 10) == 0


def test_novelty_is_bits_of_surprise() -> None:
    counts = np.array([3, 1, 0, 0])
    lists = np.array([[0, 2], [1, -1]], np.int32)
    assert novelty_at(2, lists, counts) == pytest.approx((1 + 3 + 2) / 3)


def test_the_interval_holds_the_mean_and_narrows_with_users() -> None:
    rng = np.random.default_rng(0)
    few, many = (bootstrap(rng.random(n), seed=1) for n in (50, 5_000))
    for estimate in (few, many):
        assert estimate.low < estimate.mean < estimate.high
    assert many.high - many.low < (few.high - few.low) / 5
    # Known: the deviation of a mean of n uniform numbers is 0.2887 / √n.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.2887 / math.sqrt(5_000), rel=0.1)


def test_the_interval_follows_its_seed() -> None:
    values = np.random.default_rng(0).random(30)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_nobody_to_judge_by() -> None:
    assert all(math.isnan(value) for value in bootstrap(np.empty(0), seed=0))
