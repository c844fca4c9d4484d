"""Item similarity: the contract, EASE against its definition, and what is stored of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from models.contracts import Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset
from models.retrieval.item_similarity import ease, fit_ease, fit_item_similarity, strongest
from tests.recommender_contract import (
    DAY,
    FAN_OF_A,
    GROUP_A,
    NEVER_SEEN,
    NOW,
    RecommenderContract,
    ask,
    history,
    toy_dataset,
)


class TestItemSimilarity(RecommenderContract):
    reason_codes = frozenset({"similar_to_liked"})

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return fit_item_similarity(dataset, seed=0, progress=unwatched)

    def test_similar_items(self, fitted: Recommender) -> None:
        """Nobody met the untouched item, so nothing is like it; the rest stays within its group."""
        similarities = fitted.similar(2)  # type: ignore[attr-defined]
        nearest = set(np.argsort(-similarities)[:5].tolist())
        assert nearest <= set(GROUP_A) - {2}
        assert np.isneginf(similarities[[2, NEVER_SEEN]]).all()


def test_ease_is_the_closed_form() -> None:
    met = (np.random.default_rng(1).random((50, 8)) < 0.4).astype(np.float32)
    weights = ease(sparse.csr_array(met), 3.0)
    inverse = np.linalg.inv(met.T @ met + 3.0 * np.eye(8))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_the_strongest_of_a_row_include_the_negative() -> None:
    columns, values = strongest(np.array([[0.1, -0.9, 0.5, 0.0]], np.float32), 2)
    assert columns.tolist() == [[2, 1]]
    assert values.tolist() == [[np.float32(0.5), np.float32(-0.9)]]


def test_with_every_entry_stored_scores_are_the_matrix_product() -> None:
    dataset = toy_dataset()
    fitted = fit_ease(dataset, 5.0, None, most_items=100, neighbours=100)
    met = dataset.matrix(np.ones(len(dataset.interactions), np.float32))[:, fitted.items]
    expected = ease(met, 5.0)[np.searchsorted(fitted.items, FAN_OF_A)].sum(axis=0)
    scores = fitted.scores(ask(FAN_OF_A))[fitted.items]
    np.testing.assert_allclose(np.where(np.isfinite(scores), scores, 0), expected, atol=1e-5)


def test_only_the_most_met_items_are_compared() -> None:
    dataset = toy_dataset()
    fitted = fit_ease(dataset, 5.0, None, most_items=10, neighbours=5)
    counts = np.bincount(dataset.interactions.items, minlength=dataset.n_items)
    assert len(fitted.items) == 10
    assert counts[fitted.items].min() >= np.sort(counts)[-10]
    assert fitted.neighbours.shape == (10, 5)


def test_dislikes_lead_nowhere() -> None:
    fitted = fit_ease(toy_dataset(), 5.0, None, most_items=100, neighbours=100)
    assert len(fitted.recommend(Query(limit=5, at=NOW, history=history((), (0, 3)))).positions) == 0


def test_the_older_like_counts_less_where_history_fades() -> None:
    fitted = fit_ease(toy_dataset(), 5.0, 7.0, most_items=100, neighbours=100)
    both = ask((0, 13))
    ages = NOW - np.array([70, 0]) * DAY
    fading = replace(both, history=replace(both.history, timestamps=ages))
    seeds = [reason.seed for reason in fitted.reasons(fading, fitted.recommend(fading).positions[:3])]
    assert set(seeds) == {13}


def test_the_reason_is_the_like_that_adds_most() -> None:
    fitted = fit_ease(toy_dataset(), 5.0, None, most_items=100, neighbours=100)
    position = 9
    added = {like: fitted.scores(ask((like,)))[position] for like in FAN_OF_A}
    reason = fitted.reasons(ask(FAN_OF_A), np.array([position], np.int32))[0]
    assert reason.seed == max(added, key=lambda like: added[like])


@pytest.mark.parametrize("kept", [0, 1])
def test_almost_no_interactions(kept: int) -> None:
    dataset = toy_dataset()
    small = dataset.with_interactions(dataset.interactions.take(slice(0, kept)))
    fitted = fit_item_similarity(small, seed=0, progress=unwatched)
    assert np.isneginf(fitted.scores(ask(FAN_OF_A))).all()
    assert np.isneginf(fitted.similar(0)).all()
    assert len(fitted.reasons(ask(FAN_OF_A), np.array([3], np.int32))) == 1
