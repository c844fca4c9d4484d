"""What every recommender promises, as one test class that each of them runs.

Subclass `RecommenderContract`, say how to fit the recommender, and pytest runs every promise on a toy data
set whose right answer is plain: two groups of users with disjoint tastes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    History,
    Parameters,
    Parts,
    Query,
    ReasonCode,
    Recommender,
    Scores,
    SimilarItems,
)
from models.data.dataset import Dataset, Interactions, ItemTable
from models.live.state import DayLedger, LiveState
from models.live.stream import live_state_of

ITEMS_PER_GROUP = 12
USERS_PER_GROUP = 40
LIKES_PER_USER = 7
DAY = 86_400.0
NOW = 1_700_000_000.0
GROUP_A = range(ITEMS_PER_GROUP)
GROUP_B = range(ITEMS_PER_GROUP, 2 * ITEMS_PER_GROUP)
NEVER_SEEN = 2 * ITEMS_PER_GROUP
"""Position of the one toy item that nobody touched; its content is of group A."""
N_ITEMS = NEVER_SEEN + 1


def toy_dataset(seed: int = 7) -> Dataset:
    """Users 0–39 like items 0–11, users 40–79 like items 12–23, over 30 days; item 24 is untouched."""
    rng = np.random.default_rng(seed)
    liked = [
        np.array(group)[rng.permutation(ITEMS_PER_GROUP)[:LIKES_PER_USER]]
        for group in (GROUP_A, GROUP_B)
        for _ in range(USERS_PER_GROUP)
    ]
    items = np.concatenate(liked).astype(np.int32)
    users = np.repeat(np.arange(2 * USERS_PER_GROUP, dtype=np.int32), LIKES_PER_USER)
    order = rng.permutation(len(items))
    n = len(items)
    interactions = Interactions(
        users[order], items[order], np.ones(n, np.float32), np.ones(n, np.int8),
        np.full(n, 5.0, np.float32), np.sort(NOW - rng.uniform(0, 30 * DAY, n)),
    )  # fmt: skip
    return Dataset(interactions, toy_items(), n_users=2 * USERS_PER_GROUP)


def toy_items() -> ItemTable:
    groups = ["a"] * ITEMS_PER_GROUP + ["b"] * ITEMS_PER_GROUP + ["a"]
    texts = {"a": "a quiet drama by the sea", "b": "robots race through space"}
    return ItemTable(
        categories=[(group,) for group in groups],
        tags=[()] * N_ITEMS,
        texts=[texts[group] for group in groups],
        creators=[None] * N_ITEMS,
        kinds=["film"] * N_ITEMS,
        published=np.full(N_ITEMS, np.nan),
        features=np.empty((N_ITEMS, 0), np.float32),
    )


def toy_content() -> Scores:
    """float32[25, 4]: what a content encoder would say; the first two dimensions tell the groups apart."""
    content = np.random.default_rng(3).normal(0, 0.05, (N_ITEMS, 4)).astype(np.float32)
    content[list(GROUP_A), 0] += 1
    content[list(GROUP_B), 1] += 1
    content[NEVER_SEEN, 0] += 1
    return content


NEW_ITEMS = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
"""Content of two items that arrived after the fit: one for each group."""


def history(liked: tuple[int, ...] = (), disliked: tuple[int, ...] = ()) -> History:
    """A user who liked and disliked these items, an hour apart, the last an hour before NOW."""
    n_liked, n = len(liked), len(liked) + len(disliked)
    signs = np.where(np.arange(n) < n_liked, 1, -1).astype(np.int8)
    read_only = History(
        np.array(liked + disliked, np.int32), signs.astype(np.float32), signs,
        NOW - 3600.0 * np.arange(n, 0, -1, dtype=np.float64),
    )  # fmt: skip
    for array in (read_only.positions, read_only.weights, read_only.signs, read_only.timestamps):
        array.setflags(write=False)
    return read_only


def ask(liked: tuple[int, ...] = (), *, limit: int = 10, **rest: Any) -> Query:
    return Query(limit=limit, at=NOW, history=history(liked), **rest)


def live_visits(*trails: tuple[int, ...]) -> LiveState:
    """One user per trail, who met its items a minute apart, from an hour before NOW on."""
    visits = sorted((place, user, item) for user, trail in enumerate(trails) for place, item in enumerate(trail))
    places, users, items = (np.array(column, np.int32) for column in zip(*visits, strict=True))
    state = LiveState()
    state.fold(DayLedger().changes(users, items, np.ones(len(users)), NOW - 3_600 + 60 * places.astype(np.float64)))
    return state


FAN_OF_A = (0, 3, 5, 7)
FAN_OF_B = (13, 15, 19, 21)
QUERIES = {
    "new user": ask(),
    "one like": ask((2,)),
    "fan of a": ask(FAN_OF_A),
    "fan of both": ask(FAN_OF_A + FAN_OF_B),
    "only dislikes": Query(limit=10, at=NOW, history=history((), (4, 14))),
    "likes and dislikes": Query(limit=10, at=NOW, history=history(FAN_OF_A, (13,))),
    "knows an untouched item": ask((NEVER_SEEN,)),
    "knows items younger than the fit": ask((0, N_ITEMS, N_ITEMS + 1, N_ITEMS + 5_000)),
}
LIVE = live_state_of(toy_dataset())
"""What people did in the toy data, to its end."""
QUERIES |= {
    f"{name}, live": replace(QUERIES[name], live=LIVE)
    for name in ("new user", "fan of a", "likes and dislikes", "knows items younger than the fit")
}
QUERIES |= {
    "only dislikes, live, and nobody did anything": replace(QUERIES["only dislikes"], live=LiveState()),
    "fan of a, live, of fewer items": ask(FAN_OF_A, live=live_visits((0, 3), (0, 5), (3, 5))),
    "fan of a, live, of more items": ask(FAN_OF_A, live=live_visits((0, 3), (7, N_ITEMS + 1, N_ITEMS + 40))),
}


class RecommenderContract(ABC):
    """Subclass it as `TestX`, give `fit` and the facts below."""

    reason_codes: ClassVar[frozenset[str]]
    """Codes that `reasons` may give."""
    is_personal: ClassVar[bool] = True
    """Whether the answer follows the user's taste."""
    knows_new_items: ClassVar[bool] = False
    """Whether items given to `with_new_items` are told apart by their content."""
    answers_everyone: ClassVar[bool] = False
    """Whether every item always has a finite score, so that any list can be filled."""

    @abstractmethod
    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        """Fits the recommender on the toy data."""

    def rebuild(self, fitted: Recommender, parameters: Parameters, arrays: Arrays) -> Recommender:
        """Builds the recommender from what was stored."""
        built: Recommender = type(fitted).from_parts(parameters, arrays)  # type: ignore[attr-defined]
        return built

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls) -> Recommender:
        return cls().fit(toy_dataset(), toy_content())

    @pytest.fixture(params=QUERIES)
    def query(self, request: pytest.FixtureRequest) -> Query:
        return QUERIES[request.param]

    def test_is_a_recommender(self, fitted: Recommender) -> None:
        assert isinstance(fitted, Recommender)
        assert fitted.name
        assert fitted.n_items == N_ITEMS

    def test_scores_every_position(self, fitted: Recommender, query: Query) -> None:
        scores = fitted.scores(query)
        assert scores.shape == (N_ITEMS,)
        assert scores.dtype == np.float32
        assert np.all(np.isfinite(scores) | np.isneginf(scores))

    def test_answers_are_finite_sorted_and_without_duplicates(self, fitted: Recommender, query: Query) -> None:
        positions, scores = fitted.recommend(query)
        assert positions.dtype == np.int32
        assert scores.dtype == np.float32
        assert len(positions) == len(scores) <= query.limit
        assert len(np.unique(positions)) == len(positions)
        assert np.all((positions >= 0) & (positions < N_ITEMS))
        assert np.all(np.isfinite(scores))
        assert np.all(np.diff(scores) <= 0)

    def test_same_question_same_answer(self, fitted: Recommender, query: Query) -> None:
        assert_same_answers(fitted, fitted, query)

    def test_two_fits_agree(self, fitted: Recommender) -> None:
        again = self.fit(toy_dataset(), toy_content())
        for query in QUERIES.values():
            assert_same_answers(fitted, again, query)

    def test_excluded_items_never_come_back(self, fitted: Recommender, query: Query) -> None:
        excluded = fitted.recommend(query).positions[::2]
        answer = fitted.recommend(replace(query, excluded=excluded, limit=100))
        assert not np.isin(answer.positions, excluded).any()

    def test_only_eligible_items_come_back(self, fitted: Recommender, query: Query) -> None:
        eligible = np.zeros(N_ITEMS, np.bool_)
        eligible[[1, 4, 13, 17]] = True
        answer = fitted.recommend(replace(query, eligible=eligible, limit=100))
        assert eligible[answer.positions].all()

    def test_nothing_eligible_is_an_empty_answer(self, fitted: Recommender, query: Query) -> None:
        answer = fitted.recommend(replace(query, eligible=np.zeros(N_ITEMS, np.bool_)))
        assert len(answer.positions) == len(answer.scores) == 0

    def test_filters_may_know_younger_items(self, fitted: Recommender, query: Query) -> None:
        wider = replace(
            query,
            eligible=np.ones(N_ITEMS + 3, np.bool_),
            excluded=np.array([1, N_ITEMS + 2], np.int32),
        )
        assert 1 not in fitted.recommend(wider).positions

    @pytest.mark.parametrize("limit", [0, 1, 3, N_ITEMS, 1_000])
    def test_a_shorter_answer_begins_the_longer_one(self, fitted: Recommender, query: Query, limit: int) -> None:
        everything = fitted.recommend(replace(query, limit=1_000)).positions
        answer = fitted.recommend(replace(query, limit=limit)).positions
        assert answer.tolist() == everything[:limit].tolist()

    def test_fills_any_list(self, fitted: Recommender, query: Query) -> None:
        if not self.answers_everyone:
            pytest.skip("has no opinion on some items")
        assert len(fitted.recommend(replace(query, limit=1_000)).positions) == N_ITEMS

    @pytest.mark.parametrize("live", [None, LIVE], ids=["nobody counts", "live"])
    @pytest.mark.parametrize(("liked", "group"), [(FAN_OF_A, GROUP_A), (FAN_OF_B, GROUP_B)])
    def test_follows_the_taste(
        self, fitted: Recommender, liked: tuple[int, ...], group: range, live: LiveState | None
    ) -> None:
        if not self.is_personal:
            pytest.skip("not personal")
        answer = fitted.recommend(ask(liked, limit=5, excluded=np.array(liked, np.int32), live=live))
        own = set(group) | ({NEVER_SEEN} if group is GROUP_A else set())
        assert len(answer.positions) == 5
        assert set(answer.positions.tolist()) <= own

    def test_reasons(self, fitted: Recommender, query: Query) -> None:
        positions = fitted.recommend(query).positions
        reasons = fitted.reasons(query, positions)
        assert self.reason_codes <= set(get_args(ReasonCode))
        assert len(reasons) == len(positions)
        assert {reason.code for reason in reasons} <= self.reason_codes
        seeds = {reason.seed for reason in reasons} - {None}
        assert seeds <= set(query.history.liked.tolist())

    def test_no_reasons_for_no_positions(self, fitted: Recommender, query: Query) -> None:
        assert fitted.reasons(query, np.empty(0, np.int32)) == []

    def test_new_items_join_a_copy(self, fitted: Recommender, query: Query) -> None:
        before = fitted.scores(query)
        wider = fitted.with_new_items(NEW_ITEMS)
        assert wider.n_items == N_ITEMS + 2
        assert wider.scores(query).shape == (N_ITEMS + 2,)
        assert fitted.n_items == N_ITEMS
        np.testing.assert_array_equal(fitted.scores(query), before)

    def test_new_items_replace_earlier_ones(self, fitted: Recommender, query: Query) -> None:
        twice = fitted.with_new_items(NEW_ITEMS[:1]).with_new_items(NEW_ITEMS)
        assert_same_answers(fitted.with_new_items(NEW_ITEMS), twice, query)
        assert_same_answers(fitted, twice.with_new_items(NEW_ITEMS[:0]), query)

    def test_new_items_obey_filters(self, fitted: Recommender, query: Query) -> None:
        wider = fitted.with_new_items(NEW_ITEMS)
        eligible = np.ones(N_ITEMS + 2, np.bool_)
        eligible[N_ITEMS] = False
        excluded = np.array([N_ITEMS + 1], np.int32)
        answer = wider.recommend(replace(query, limit=1_000, eligible=eligible, excluded=excluded))
        assert np.all(answer.positions < N_ITEMS)

    def test_new_items_are_told_apart_by_content(self, fitted: Recommender) -> None:
        if not self.knows_new_items:
            pytest.skip("knows nothing of content")
        wider = fitted.with_new_items(NEW_ITEMS)
        for liked, own, other in ((FAN_OF_A, N_ITEMS, N_ITEMS + 1), (FAN_OF_B, N_ITEMS + 1, N_ITEMS)):
            scores = wider.scores(ask(liked))
            assert np.isfinite(scores[own])
            assert scores[own] > scores[other]

    def test_a_liked_new_item_counts(self, fitted: Recommender) -> None:
        if not (self.knows_new_items and self.is_personal):
            pytest.skip("knows nothing of content")
        wider = fitted.with_new_items(NEW_ITEMS)
        answer = wider.recommend(ask((N_ITEMS + 1,), limit=5, excluded=np.array([N_ITEMS + 1], np.int32)))
        assert set(answer.positions.tolist()) <= set(GROUP_B)

    def test_fills_any_list_with_new_items(self, fitted: Recommender, query: Query) -> None:
        if not self.answers_everyone:
            pytest.skip("has no opinion on some items")
        wider = fitted.with_new_items(NEW_ITEMS)
        assert len(wider.recommend(replace(query, limit=1_000)).positions) == N_ITEMS + 2

    def test_comes_back_from_disk_unchanged(self, fitted: Recommender, tmp_path: Path) -> None:
        loaded = self.rebuild(fitted, *stored_and_read(fitted.parts(), tmp_path))
        assert loaded.name == fitted.name
        for query in QUERIES.values():
            assert_same_answers(fitted, loaded, query)
            assert_same_answers(fitted.with_new_items(NEW_ITEMS), loaded.with_new_items(NEW_ITEMS), query)

    def test_stored_with_new_items_only_the_fit_is_kept(self, fitted: Recommender, tmp_path: Path) -> None:
        wider = fitted.with_new_items(NEW_ITEMS)
        loaded = self.rebuild(wider, *stored_and_read(wider.parts(), tmp_path))
        assert loaded.n_items == N_ITEMS

    def test_answering_changes_nothing(self, fitted: Recommender) -> None:
        before = {name: array.copy() for name, array in fitted.parts().arrays.items()}
        for query in QUERIES.values():
            fitted.recommend(query)
            fitted.reasons(query, np.arange(N_ITEMS, dtype=np.int32))
        for name, array in fitted.parts().arrays.items():
            np.testing.assert_array_equal(array, before[name])

    def test_is_immutable(self, fitted: Recommender) -> None:
        with pytest.raises(AttributeError):
            fitted.name = "another"

    def test_similar_items(self, fitted: Recommender) -> None:
        if not isinstance(fitted, SimilarItems):
            pytest.skip("does not compare items")
        for position, own in ((2, set(GROUP_A) | {NEVER_SEEN}), (16, set(GROUP_B))):
            similarities = fitted.similar(position)
            assert similarities.shape == (N_ITEMS,)
            assert similarities.dtype == np.float32
            assert np.isneginf(similarities[position])
            assert set(np.argsort(-similarities)[:5].tolist()) <= own

    def test_similar_to_an_unknown_item(self, fitted: Recommender) -> None:
        if not isinstance(fitted, SimilarItems):
            pytest.skip("does not compare items")
        assert np.isneginf(fitted.similar(N_ITEMS + 40)).all()


def stored_and_read(parts: Parts, folder: Path) -> tuple[Parameters, Mapping[str, NDArray[Any]]]:
    """The parts after a way to the disk and back: JSON and read-only memory maps, no pickle."""
    parameters = json.loads(json.dumps(parts.parameters, allow_nan=False))
    for name, array in parts.arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in parts.arrays}
    assert not any(array.flags.writeable for array in arrays.values())
    return parameters, arrays


def assert_same_answers(one: Recommender, other: Recommender, query: Query) -> None:
    np.testing.assert_array_equal(one.scores(query), other.scores(query))
    for left, right in zip(one.recommend(query), other.recommend(query), strict=True):
        np.testing.assert_array_equal(left, right)
    positions = one.recommend(query).positions
    assert one.reasons(query, positions) == other.reasons(query, positions)
