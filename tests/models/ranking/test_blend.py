"""The arithmetic of the blend: surprise, and weights learned by what users did next."""

from __future__ import annotations

import numpy as np
import pytest

from models.ranking.blend import Lists, Surprise, fit_weights


def test_surprise_is_distance_from_what_the_source_usually_says() -> None:
    sample = np.array([[1.0, 10.0, 0.0], [3.0, 14.0, 0.0]], np.float32)
    surprise = Surprise.of(sample)
    found = surprise(np.array([3.0, 12.0, 0.0], np.float32))
    assert found[0] > 0
    assert found[1:].tolist() == [0.0, 0.0]


def test_surprise_is_bounded_and_silent_without_an_opinion() -> None:
    surprise = Surprise.of(np.array([[1.0, 1.0], [2.0, 1.5]], np.float32))
    assert surprise(np.array([1e9, -1e9], np.float32)).tolist() == [4.0, -4.0]
    assert surprise(np.full(2, -np.inf, np.float32)).tolist() == [0.0, 0.0]


def test_surprise_of_no_users_and_of_new_items() -> None:
    surprise = Surprise.of(np.empty((0, 3), np.float32)).widened(5)
    assert surprise(np.arange(5, dtype=np.float32)).tolist() == [0, 1, 2, 3, 4]


def moment(*sources: list[float], relevant: int) -> Lists:
    """One user, as many candidates as popularity (the first source) has entries, one of them relevant."""
    m = len(sources[0])
    return Lists(
        np.array(sources, np.float32)[:, None, :],
        np.ones((1, m), np.bool_),
        (np.arange(m) == relevant)[None, :],
        np.array([1]),
    )


def test_ndcg_of_a_known_ranking() -> None:
    lists = moment([3.0, 2.0, 1.0], relevant=1)
    assert lists.ndcg([1.0]) == pytest.approx(1 / np.log2(3))


def test_unusable_candidates_do_not_count() -> None:
    lists = moment([3.0, 2.0, 1.0], relevant=1)
    without_first = lists._replace(usable=np.array([[False, True, True]]))
    assert without_first.ndcg([1.0]) == 1.0


def test_a_source_that_knows_better_gets_weight_and_one_that_does_not_gets_none() -> None:
    lists = moment([3.0, 2.9, 1.0], [0.0, 2.0, 0.0], [2.0, 0.0, 2.0], relevant=1)
    weights, best, alone = fit_weights([lists], 2)
    assert weights[0] > 0
    assert weights[1] == 0
    assert best == 1.0
    assert alone == pytest.approx(1 / np.log2(3))


def test_weights_never_rank_worse_than_popularity_where_they_were_learned() -> None:
    rng = np.random.default_rng(0)
    moments = [moment(*rng.normal(size=(3, 20)).tolist(), relevant=int(rng.integers(20))) for _ in range(20)]
    _, best, alone = fit_weights(moments, 2)
    assert best >= alone
