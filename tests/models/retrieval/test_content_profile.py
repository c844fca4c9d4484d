"""Content profile: the contract, and likeness to the last items above all."""

from __future__ import annotations

import numpy as np
import pytest

from models.contracts import Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset
from models.retrieval.content_profile import RECENCY, ContentProfile, fit_content_profile
from tests.recommender_contract import NOW, RecommenderContract, ask, history


class TestContentProfile(RecommenderContract):
    reason_codes = frozenset({"similar_to_liked"})
    knows_new_items = True

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return fit_content_profile(content, progress=unwatched)


@pytest.fixture
def fitted() -> ContentProfile:
    return fit_content_profile(np.diag(np.array([1, 2, 3, 0], np.float32)), progress=unwatched)


def test_the_score_is_the_cosine_with_the_items_that_count_less_the_older(fitted: ContentProfile) -> None:
    older = 0.5 ** (1 / RECENCY)
    expected = np.array([older, 1, 0, 0]) / np.hypot(older, 1)
    np.testing.assert_allclose(fitted.scores(ask((0, 1))), expected, rtol=1e-5)


def test_what_was_disliked_is_no_taste_and_no_reason(fitted: ContentProfile) -> None:
    query = Query(limit=3, at=NOW, history=history((0,), (1,)))
    np.testing.assert_allclose(fitted.scores(query), [1, 0, 0, 0])
    assert [reason.seed for reason in fitted.reasons(query, np.array([0, 1], np.int32))] == [0, 0]


def test_nothing_is_said_where_nothing_is_known_of_the_past(fitted: ContentProfile) -> None:
    for liked in ((), (3,), (9,)):
        assert np.isneginf(fitted.scores(ask(liked))).all()


def test_only_what_was_liked_is_named_as_a_reason(fitted: ContentProfile) -> None:
    """An item that was merely met shapes the taste, too; `similar_to_liked` would be wrong of it."""
    met = history((0, 1))
    signs = np.array([1, 0], np.int8)
    query = Query(limit=3, at=NOW, history=type(met)(met.positions, met.weights, signs, met.timestamps))
    assert fitted.scores(query)[1] > 0
    assert [reason.seed for reason in fitted.reasons(query, np.array([0, 1, 2], np.int32))] == [0, 0, 0]
