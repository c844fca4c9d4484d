"""The ALS hybrid over many items: what it finds without looking at all of them is what it would find by looking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Mask, Query
from models.retrieval import als_hybrid, inverted_lists
from models.retrieval.als_hybrid import AlsHybrid, Confidence
from models.retrieval.content_map import ContentMap
from models.retrieval.dense import DenseRecommender, best, best_among
from models.retrieval.item_rows import ItemRows
from tests.recommender_contract import ask

N, ARRIVED, D, GROUPS = 40_000, 20, 16, 300
UNKNOWN = np.arange(7, N, 100)
"""Items that it must not speak of."""


@pytest.fixture(scope="module")
def fitted() -> AlsHybrid:
    """Factors in groups, a prior, unknown items, and items that arrived since."""
    rng = np.random.default_rng(0)
    groups = rng.integers(GROUPS, size=N)
    rows = rng.normal(size=(GROUPS, D))[groups] + rng.normal(size=(N, D)) * 0.6
    rows = (rows * rng.lognormal(-2, 0.5, (N, 1))).astype(np.float32)
    prior = rng.normal(0.002, 0.005, N).astype(np.float32)
    prior[UNKNOWN] = -np.inf
    learned = rows.astype(np.float64)
    return (
        AlsHybrid(
            vectors=ItemRows.of(rows), prior=prior, gramian=learned.T @ learned + 30 * np.eye(D),
            content_map=ContentMap(np.eye(D + 1, D, dtype=np.float32), np.zeros((D, 0), np.float32), 1.0),
            confidence=Confidence(graded=True), content_weight=0.0, chosen={},
        )
        .listed(seed=0)
        .with_new_items(rng.normal(size=(ARRIVED, D)).astype(np.float32) * 9)
    )  # fmt: skip


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(als_hybrid, "FEWEST_SEARCHED", 1_000)
    monkeypatch.setattr(inverted_lists, "FEWEST_FILTERED", 2_000)


def questions(eligible: Mask | None = None, limit: int = 30) -> list[Query]:
    rng = np.random.default_rng(1)
    met = [np.unique(rng.integers(N, size=12)).astype(np.int32) for _ in range(30)]
    return [ask(tuple(items.tolist()), limit=limit, excluded=items, eligible=eligible) for items in met]


def passing(share: float) -> Mask:
    return np.random.default_rng(2).random(N + ARRIVED) < share


@pytest.mark.parametrize("share", [None, 0.3, 0.02, 0.0005])
def test_nearly_all_of_the_best_are_found_scored_as_they_are(fitted: AlsHybrid, share: float | None) -> None:
    eligible = None if share is None else passing(share)
    found, arrived = [], 0
    for query in questions(eligible):
        answer, true = fitted.recommend(query), DenseRecommender.recommend(fitted, query)
        assert len(answer.positions) == len(true.positions)
        np.testing.assert_allclose(answer.scores, fitted.scores(query)[answer.positions], rtol=1e-4)
        assert (np.diff(answer.scores) <= 0).all()
        assert not np.isin(answer.positions, [*query.excluded, *UNKNOWN]).any()
        assert eligible is None or eligible[answer.positions].all()
        found.append(np.isin(true.positions, answer.positions).mean())
        arrived += np.count_nonzero(answer.positions >= N)
    assert np.mean(found) > 0.985
    assert arrived or share in (0.02, 0.0005)


def test_whoever_has_met_all_that_is_promising_is_shown_the_best_of_the_rest(fitted: AlsHybrid) -> None:
    """Of what the lists read first, nothing is left."""
    assert fitted.lists is not None
    for query in questions(limit=20)[:5]:
        listed = np.append(fitted.user_vector(query.history), np.float32(fitted.prior_scale))
        asked = replace(query, excluded=np.union1d(query.excluded, fitted.lists.near(listed, 2_500)[0]))
        answer, true = fitted.recommend(asked), DenseRecommender.recommend(fitted, asked)
        assert len(answer.positions) == 20
        assert answer.positions.tolist() == true.positions.tolist()


def test_nothing_left_is_no_answer(fitted: AlsHybrid) -> None:
    query = questions(np.zeros(N + ARRIVED, np.bool_))[0]
    assert len(fitted.recommend(query).positions) == 0
    assert len(fitted.recommend(questions(limit=0)[0]).positions) == 0


@pytest.mark.parametrize("limit", [0, 1, 30, 480, 600])
def test_of_some_items_the_best_are_cut_as_of_all(limit: int) -> None:
    scores = np.random.default_rng(0).integers(0, 40, 500).astype(np.float32)
    of_all, of_some = best(scores, ask((1, 2), limit=limit)), best_among(np.arange(500, dtype=np.int32), scores, limit)
    assert of_all.positions.tolist() == of_some.positions.tolist()
    assert of_all.scores.tolist() == of_some.scores.tolist()
