"""The ALS hybrid: the shared contract, fold-in against the textbook, content where factors know nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Query, Reason, Scores, unwatched
from models.data.dataset import Dataset, Interactions, ItemTable
from models.retrieval.als_hybrid import (
    LONGEST_HISTORY,
    AlsHybrid,
    Confidence,
    content_profile,
    fit_als_hybrid,
    fold_in,
)
from tests.recommender_contract import (
    DAY,
    FAN_OF_A,
    FAN_OF_B,
    GROUP_A,
    GROUP_B,
    NEVER_SEEN,
    NEW_ITEMS,
    NOW,
    RecommenderContract,
    ask,
    history,
    toy_content,
    toy_dataset,
)


def fit(dataset: Dataset, content: Scores) -> AlsHybrid:
    return fit_als_hybrid(dataset, content, seed=3, progress=unwatched)


class TestAlsHybrid(RecommenderContract):
    reason_codes = frozenset({"taste", "similar_to_liked"})
    knows_new_items = True

    def fit(self, dataset: Dataset, content: Scores) -> AlsHybrid:
        return fit(dataset, content)


@pytest.fixture(scope="module")
def fitted() -> AlsHybrid:
    return fit(toy_dataset(), toy_content())


def test_fold_in_solves_the_weighted_least_squares_of_the_paper() -> None:
    """Equation 4 of Hu, Koren and Volinsky, written out with every item, met or not."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(30, 5)).astype(np.float32)
    met, confidence = np.array([2, 7, 11]), np.array([10.0, 4.0, -6.0], np.float32)
    every = np.ones(30)
    every[met] = np.abs(confidence)
    preferred = np.zeros(30)
    preferred[met] = confidence > 0
    wanted = np.linalg.solve(factors.T * every @ factors + 3 * np.eye(5), factors.T @ (every * preferred))
    gramian = factors.T.astype(np.float64) @ factors + 3 * np.eye(5)
    np.testing.assert_allclose(fold_in(factors[met], confidence, gramian), wanted, rtol=1e-5)


def test_fold_in_agrees_with_the_library_that_factorised() -> None:
    from implicit.cpu.als import AlternatingLeastSquares  # noqa: PLC0415
    from scipy import sparse  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    matrix = sparse.random(60, 40, 0.2, format="csr", random_state=2, dtype=np.float32) * 10 + 0
    matrix.data += 1
    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(factors=6, regularization=2.0, alpha=1.0, random_state=1)
        als.fit(matrix, show_progress=False)
        theirs = als.recalculate_user(0, matrix[:1])
    gramian = als.item_factors.T.astype(np.float64) @ als.item_factors + 2.0 * np.eye(6)
    ours = fold_in(als.item_factors[matrix[0].indices], matrix[0].data, gramian)
    np.testing.assert_allclose(ours, np.ravel(theirs), atol=1e-4)


def test_an_item_without_interactions_has_the_factors_of_its_like(fitted: AlsHybrid) -> None:
    f = len(fitted.gramian)
    factors = fitted.vectors.fitted[:, :f]
    of_a, of_b = factors[list(GROUP_A)].mean(axis=0), factors[list(GROUP_B)].mean(axis=0)
    assert factors[NEVER_SEEN] @ of_a > 3 * abs(factors[NEVER_SEEN] @ of_b)


def test_factors_alone_follow_the_taste(fitted: AlsHybrid) -> None:
    """Without content and trend: what is left is collaborative filtering."""
    factors_only = replace(fitted, content_weight=0.0, prior=np.zeros_like(fitted.prior))
    answer = factors_only.recommend(ask(FAN_OF_B, limit=8, excluded=np.array(FAN_OF_B, np.int32)))
    assert set(answer.positions.tolist()) <= set(GROUP_B)


def test_a_dislike_pushes_its_like_down(fitted: AlsHybrid) -> None:
    before = fitted.scores(ask((*FAN_OF_A, 13)))
    after = fitted.scores(Query(limit=10, at=NOW, history=history(FAN_OF_A, (13,))))
    others = [position for position in GROUP_B if position != 13]
    assert (after[others] < before[others]).all()


def test_a_user_without_history_gets_no_opinion(fitted: AlsHybrid) -> None:
    assert np.isneginf(fitted.scores(ask())).all()
    assert np.isneginf(fitted.scores(ask((5_000,)))).all()


def test_an_item_of_which_nothing_is_known_is_not_recommended() -> None:
    content = toy_content()
    content[NEVER_SEEN] = 0
    fitted = fit(toy_dataset(), content)
    wider = fitted.with_new_items(np.vstack([NEW_ITEMS, np.zeros((1, 4), np.float32)]))
    scores = wider.scores(ask(FAN_OF_A))
    assert np.isneginf(scores[[NEVER_SEEN, -1]]).all()
    assert np.isfinite(np.delete(scores, [NEVER_SEEN, len(scores) - 1])).all()


def test_the_seed_of_a_reason_is_the_closest_liked_item(fitted: AlsHybrid) -> None:
    content_only = replace(fitted, content_weight=100.0)
    reasons = content_only.reasons(ask((3, 15)), np.array([1, 17, 16], np.int32))
    assert reasons == [Reason("similar_to_liked", 3), Reason("similar_to_liked", 15), Reason("similar_to_liked", 15)]
    factors_only = replace(fitted, content_weight=0.0)
    assert factors_only.reasons(ask((3,)), np.array([1], np.int32)) == [Reason("taste")]


def test_without_content_factors_remain() -> None:
    fitted = fit(toy_dataset(), np.zeros((25, 0), np.float32))
    answer = fitted.recommend(ask(FAN_OF_A, limit=5, excluded=np.array(FAN_OF_A, np.int32)))
    assert set(answer.positions.tolist()) <= set(GROUP_A)
    assert NEVER_SEEN not in fitted.recommend(ask(FAN_OF_A, limit=100)).positions


def test_without_interactions_content_remains() -> None:
    """The first day of a service: a catalogue, and nobody was there yet."""
    dataset = toy_dataset()
    untouched = dataset.with_interactions(dataset.interactions.take(slice(0, 0)))
    fitted = fit(untouched, toy_content())
    answer = fitted.recommend(ask(FAN_OF_A, limit=5, excluded=np.array(FAN_OF_A, np.int32)))
    assert set(answer.positions.tolist()) <= {*GROUP_A, NEVER_SEEN}


def test_only_the_newest_of_a_long_history_count(fitted: AlsHybrid) -> None:
    long = np.resize(np.array(GROUP_B, np.int32), LONGEST_HISTORY).tolist()
    newest, all_of_it = history(tuple(long)), history((0, *long))
    np.testing.assert_array_equal(
        fitted.scores(Query(limit=1, at=NOW, history=newest)), fitted.scores(Query(limit=1, at=NOW, history=all_of_it))
    )


def test_what_it_says_of_an_item_does_not_depend_on_what_is_asked_beside_it(fitted: AlsHybrid) -> None:
    """To the last bit: answers are put together from what was said at several times."""
    opinion = fitted.opinion(ask(FAN_OF_A, limit=5))
    assert opinion is not None
    rows = fitted.rows_of(np.arange(NEVER_SEEN, dtype=np.int32))
    assert opinion.scores(rows)[::3].tobytes() == opinion.scores(rows[::3]).tobytes()
    assert opinion.scores(rows)[5:6].tobytes() == opinion.scores(rows[5:6]).tobytes()


def test_weights_are_chosen_by_users_with_long_histories_too() -> None:
    """Each of 60 meets most of 640 items, one after the other."""
    rng = np.random.default_rng(5)
    n_users, n_items, met = 60, LONGEST_HISTORY + 140, LONGEST_HISTORY + 120
    items = np.concatenate([rng.permutation(n_items)[:met] for _ in range(n_users)]).astype(np.int32)
    users, n = np.repeat(np.arange(n_users, dtype=np.int32), met), n_users * met
    at = np.tile(np.linspace(NOW - 30 * DAY, NOW, met), n_users)
    order = at.argsort(kind="stable")
    ones = np.ones(n, np.float32)
    interactions = Interactions(users[order], items[order], ones, ones.astype(np.int8), ones, at[order])
    table = ItemTable(
        [()] * n_items, [()] * n_items, [""] * n_items, [None] * n_items, [None] * n_items,
        np.full(n_items, np.nan), np.empty((n_items, 0), np.float32),
    )  # fmt: skip
    content = rng.normal(size=(n_items, 4)).astype(np.float32)

    fitted = fit(Dataset(interactions, table, n_users=n_users), content)

    assert fitted.chosen["ndcg"] is not None, "they were asked"


def test_the_latest_like_leads_the_profile() -> None:
    rows = np.eye(2, dtype=np.float32)
    profile = content_profile(rows, history((0, 1)))
    assert profile[1] > profile[0] > 0
    assert content_profile(rows, history((0,), (1,)))[1] < 0


def test_confidence() -> None:
    weights, signs = np.array([1.0, 0.2, 0.0, -1.0], np.float32), np.array([1, 1, 0, -1], np.int8)
    graded = Confidence(graded=True).of(weights, signs)
    assert graded[0] > graded[1] > graded[2] >= 1
    assert graded[3] <= -1
    equal = Confidence(graded=False).of(weights, signs)
    assert len(set(equal[:3].tolist())) == 1
    assert equal[3] <= -1


def test_what_was_chosen_is_kept(fitted: AlsHybrid) -> None:
    assert set(fitted.parts().parameters["chosen"]) >= {"graded", "weights", "trend_weight", "kind", "ndcg"}
