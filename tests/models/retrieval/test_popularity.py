"""Popularity: the contract, its kinds, and the choice between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset, Interactions
from models.data.splits import split_by_time
from models.retrieval.popularity import Popularity, fit_popularity
from models.retrieval.popularity_kinds import DEFAULT, Future, Kind, choose_kind, masses
from tests.recommender_contract import (
    DAY,
    N_ITEMS,
    NEVER_SEEN,
    NOW,
    RecommenderContract,
    ask,
    toy_dataset,
    toy_items,
)


class TestPopularity(RecommenderContract):
    reason_codes = frozenset({"popular"})
    is_personal = False
    answers_everyone = True

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return fit_popularity(dataset, progress=unwatched)


def events(*users_items_days: tuple[int, int, float], weight: float = 1.0) -> Dataset:
    """One interaction per (user, item, days before NOW)."""
    ordered = sorted(users_items_days, key=lambda event: -event[2])
    n = len(ordered)
    interactions = Interactions(
        np.array([user for user, _, _ in ordered], np.int32),
        np.array([item for _, item, _ in ordered], np.int32),
        np.full(n, weight, np.float32), np.ones(n, np.int8), np.full(n, np.nan, np.float32),
        np.array([NOW - days * DAY for _, _, days in ordered]),
    )  # fmt: skip
    return Dataset(interactions, toy_items(), n_users=10)


def test_a_window_counts_what_is_young_enough() -> None:
    dataset = events((0, 1, 0), (1, 1, 2), (2, 2, 4), (3, 2, 0.5))
    assert masses(dataset, Kind("window", 3))[[1, 2, 3]].tolist() == [2, 1, 0]
    assert masses(dataset, Kind("all"))[[1, 2, 3]].tolist() == [2, 2, 0]


def test_a_decay_halves_and_weighs() -> None:
    dataset = events((0, 1, 0), (1, 1, 2), (2, 2, 4))
    assert masses(dataset, Kind("decay", 2))[[1, 2]].tolist() == [2 * 1.5, 2 * 0.25]


def test_what_people_dislike_is_not_popular_by_decay() -> None:
    assert masses(events((0, 1, 0), weight=-1.0), Kind("decay", 2))[1] == 0


def test_never_met_items_come_last_and_earlier_ones_break_ties() -> None:
    fitted = fit_popularity(toy_dataset(), progress=unwatched).with_new_items(np.zeros((2, 4), np.float32))
    answer = fitted.recommend(ask(limit=100))
    assert answer.positions[-3:].tolist() == [NEVER_SEEN, N_ITEMS, N_ITEMS + 1]


def test_all_time_popularity_orders_what_the_window_has_forgotten() -> None:
    dataset = events((0, 1, 0), (1, 2, 300), (1, 3, 300), (2, 3, 299))
    fitted = fit_popularity(dataset, progress=unwatched).serving("window:3d")
    assert fitted.recommend(ask(limit=3)).positions.tolist() == [1, 3, 2]


def test_an_unknown_kind_is_named() -> None:
    fitted = fit_popularity(toy_dataset(), progress=unwatched)
    with pytest.raises(ValueError, match="'window:5y'"):
        fitted.serving("window:5y")


def test_too_few_users_leave_the_default() -> None:
    assert choose_kind(events((0, 1, 0), (1, 2, 1))) == DEFAULT


def test_the_choice_follows_what_foretells() -> None:
    """Whoever comes meets what was new in the last days: only a short memory helps."""
    visits = [(300 - day * 10 + k, day // 6, 30 - day - k / 1_000) for day in range(30) for k in range(40)]
    dataset = events(*visits, *[(user, 20, 31) for user in range(400)])
    kind = choose_kind(replace(dataset, n_users=400))
    assert kind.shape != "all"
    assert kind.days <= 2


def test_an_empty_dataset_still_answers() -> None:
    dataset = toy_dataset()
    empty = dataset.with_interactions(dataset.interactions.take(slice(0, 0)))
    fitted: Popularity = fit_popularity(empty, progress=unwatched)
    assert fitted.recommend(Query(limit=3, at=NOW)).positions.tolist() == [0, 1, 2]


def test_a_future_judges_like_a_ranking_per_user_would() -> None:
    split = split_by_time(toy_dataset())
    future, scores = Future.of(split), np.random.default_rng(5).normal(size=N_ITEMS)
    histories = split.earlier.histories()
    found = []
    for user in np.unique(split.later.users):
        seen = histories[user].positions
        wanted = np.setdiff1d(split.later.items[split.later.users == user], seen)
        if len(wanted):
            ranking = [item for item in np.argsort(-scores) if item not in seen][:10]
            gains = [1 / np.log2(place + 2) for place, item in enumerate(ranking) if item in wanted]
            found.append(sum(gains) / sum(1 / np.log2(place + 2) for place in range(min(10, len(wanted)))))
    assert future.ndcg(scores) == pytest.approx(np.mean(found))
    assert len(future) == len(found)
