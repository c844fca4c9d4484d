"""The blend: the contract, and what it tells of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Arrays, Parameters, Recommender, Scores, unwatched
from models.data.dataset import Dataset
from models.recipes import RECIPES, FitContext
from models.two_stage import Blend
from tests.recommender_contract import FAN_OF_A, N_ITEMS, RecommenderContract, ask, toy_content, toy_dataset

PARTS = RECIPES["blend"].needs


def fit(dataset: Dataset, content: Scores) -> Blend:
    context = FitContext(0, unwatched, content, {})
    fitted = {name: RECIPES[name].fit(dataset, context) for name in PARTS}
    blend = RECIPES["blend"].fit(dataset, replace(context, fitted=fitted))
    assert isinstance(blend, Blend)
    return blend


class TestBlend(RecommenderContract):
    reason_codes = frozenset({"popular", "similar_to_liked", "taste"})
    knows_new_items = True
    answers_everyone = True

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return fit(dataset, content)

    def rebuild(self, fitted: Recommender, parameters: Parameters, arrays: Arrays) -> Recommender:
        assert isinstance(fitted, Blend)
        sources = {"popularity": fitted.popularity, **fitted.sources}
        as_fitted = {name: part.with_new_items(np.empty((0, 4), np.float32)) for name, part in sources.items()}
        return Blend.from_parts(parameters, arrays, as_fitted)


@pytest.fixture(scope="module")
def blend() -> Blend:
    return fit(toy_dataset(), toy_content())


def test_weights_are_named_by_source(blend: Blend) -> None:
    assert list(blend.weights()) == list(PARTS)
    assert blend.weights()["popularity"] == 1.0
    assert any(weight > 0 for weight in blend.factors.values())


def test_a_new_user_gets_popularity_in_its_order(blend: Blend) -> None:
    query = ask(limit=N_ITEMS)
    assert blend.recommend(query).positions.tolist() == blend.popularity.recommend(query).positions.tolist()
    assert {reason.code for reason in blend.reasons(query, np.arange(5, dtype=np.int32))} == {"popular"}


def test_contributions_are_each_sources_own_scores_and_ranks(blend: Blend) -> None:
    query = ask(FAN_OF_A, excluded=np.array(FAN_OF_A, np.int32))
    positions = np.array([1, FAN_OF_A[0], 20], np.int32)
    found = blend.contributions(query, positions)
    assert list(found) == [*PARTS, "blend"]
    for name, source in {**blend.sources, "blend": blend}.items():
        np.testing.assert_array_equal(found[name].scores, source.scores(query)[positions])
        ranking = source.recommend(replace(query, limit=N_ITEMS)).positions.tolist()
        assert found[name].ranks.tolist() == [
            ranking.index(position) + 1 if position in ranking else 0 for position in positions.tolist()
        ]


def test_excluded_items_have_no_rank(blend: Blend) -> None:
    query = ask(FAN_OF_A, excluded=np.array(FAN_OF_A, np.int32))
    found = blend.contributions(query, np.array(FAN_OF_A, np.int32))
    assert all(not contribution.ranks.any() for contribution in found.values())


def test_the_sum_is_what_orders(blend: Blend) -> None:
    query = ask(FAN_OF_A)
    expected = blend.prior.copy()
    for name, factor in blend.factors.items():
        expected += factor * blend.surprises[name](blend.sources[name].scores(query))
    np.testing.assert_allclose(blend.scores(query), expected, rtol=1e-5)


def test_it_stands_on_popularity(blend: Blend) -> None:
    parameters, arrays = blend.parts()
    with pytest.raises(KeyError, match="popularity"):
        Blend.from_parts(parameters, arrays, {})
