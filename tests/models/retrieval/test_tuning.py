"""Holding out the newest interactions, and choosing by them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from models.contracts import History
from models.data.dataset import Dataset
from models.retrieval.popularity_kinds import Kind
from models.retrieval.tuning import Trial, choose_mix, hold_out_in_turn, hold_out_newest, ndcg, trend
from tests.recommender_contract import GROUP_A, ITEMS_PER_GROUP, N_ITEMS, toy_dataset


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return toy_dataset()


def test_what_is_held_out_lies_after_everything_else(dataset: Dataset) -> None:
    held_out = hold_out_newest(dataset, seed=1)
    assert len(held_out.earlier.interactions) == 504
    assert held_out.cases
    for history, targets in held_out.cases:
        assert len(history) > 0
        assert history.timestamps.max() <= held_out.earlier.ends_at < dataset.ends_at
        assert not np.isin(targets, history.positions).any()


def test_moments_in_turn_come_later_and_later(dataset: Dataset) -> None:
    ends = [held_out.earlier.ends_at for held_out in hold_out_in_turn(dataset, seed=1)]
    assert ends == sorted(ends)
    assert ends
    assert ends[-1] < dataset.ends_at


def test_too_little_data_is_not_chosen_by(dataset: Dataset) -> None:
    tiny = dataset.with_interactions(dataset.interactions.take(slice(0, 40)))
    assert hold_out_in_turn(tiny, seed=1) == []
    empty = dataset.with_interactions(dataset.interactions.take(slice(0, 0)))
    assert not hold_out_newest(empty, seed=1).is_telling


def test_the_signal_that_knows_best_gets_the_weight(dataset: Dataset) -> None:
    """One signal gives each user their own group's items, the other the other group's."""

    def signals(history: History) -> np.ndarray:
        in_a = np.arange(N_ITEMS) < ITEMS_PER_GROUP
        own = in_a if history.positions[0] in GROUP_A else ~in_a
        return np.stack([~own, own]).astype(np.float32)

    trials = [Trial(held_out, signals) for held_out in hold_out_in_turn(dataset, seed=1)]
    mix = choose_mix(trials, Kind("all"), [(1.0, 0.0), (0.0, 1.0)], concession=0.0)
    assert mix.weights == (0.0, 1.0)
    assert mix.ndcg is not None
    assert mix.ndcg > 0.3


def test_a_concession_buys_less_trend(dataset: Dataset) -> None:
    trials = [
        Trial(held_out, lambda _history: np.zeros((1, N_ITEMS), np.float32))
        for held_out in hold_out_in_turn(dataset, seed=1)
    ]
    best = choose_mix(trials, Kind("all"), [(1.0,)], concession=0.0)
    least = choose_mix(trials, Kind("all"), [(1.0,)], concession=1.0)
    assert best.trend_weight > least.trend_weight == 0
    assert best.ndcg is not None
    assert least.ndcg is not None
    assert best.ndcg > least.ndcg


def test_ndcg() -> None:
    scores = np.array([[9, 8, 7, 6], [6, 7, 8, 9], [1, 1, 1, 1]], np.float32)
    found = ndcg(scores, np.array([0, 1]))
    assert found[0] == pytest.approx(1)
    assert found[1] == pytest.approx((1 / np.log2(4) + 1 / np.log2(5)) / (1 + 1 / np.log2(3)))
    assert found[2] < found[1], "a tie must not pass for knowledge"


def test_ndcg_forgets_what_is_below_the_cut() -> None:
    scores = np.arange(30, 0, -1, dtype=np.float32)[None, :]
    assert ndcg(scores, np.array([10])) == 0
    assert ndcg(scores, np.array([9])) > 0


def test_a_trend_fades(dataset: Dataset) -> None:
    lasting, fading = trend(dataset, Kind("all")), trend(dataset, Kind("decay", 1))
    counts = np.bincount(dataset.interactions.items, minlength=N_ITEMS)
    np.testing.assert_allclose(lasting, np.log1p(counts), rtol=1e-6)
    assert (fading < lasting)[counts > 0].all()


def test_serving_needs_neither_scikit_learn_nor_implicit() -> None:
    """Fitting imports them; a worker that carried them would start slower and weigh more."""
    program = (
        "import sys, models.retrieval.als_hybrid, models.retrieval.content_clusters, models.data.features;"
        "sys.exit(' '.join({'sklearn', 'implicit', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
