"""Inverted lists: nearly all of the best are found, exactly scored, and all of them where everything is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.contracts import Mask, Scores
from models.retrieval import inverted_lists
from models.retrieval.inverted_lists import ENOUGH, InvertedLists

N, D, GROUPS = 20_000, 16, 150


def clustered(n: int = N, seed: int = 0) -> Scores:
    """Rows around directions, of lengths that differ much."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(GROUPS, D))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres[rng.integers(GROUPS, size=n)] + rng.normal(size=(n, D)) * 0.6 / np.sqrt(D)
    return np.asarray(rows * rng.lognormal(0, 0.5, (n, 1)), np.float32)


ROWS = clustered()
POSITIONS = (np.arange(N) * 3 + 1).astype(np.int32)


@pytest.fixture(scope="module")
def lists() -> InvertedLists:
    return InvertedLists.of(ROWS, POSITIONS, seed=0)


def questions(count: int = 60) -> Scores:
    rng = np.random.default_rng(1)
    found = [ROWS[rng.integers(N, size=3)].T @ rng.dirichlet([1, 1, 1]) for _ in range(count)]
    return np.stack(found).astype(np.float32)


def test_every_row_is_in_one_list_the_longest_first(lists: InvertedLists) -> None:
    assert len(lists) == N
    assert sorted(lists.order.tolist()) == POSITIONS.tolist()
    np.testing.assert_array_equal(lists.rows, ROWS[(lists.order - 1) // 3])
    assert lists.starts[0] == 0
    assert lists.starts[-1] == N
    for start, end in zip(lists.starts[:-1], lists.starts[1:], strict=True):
        lengths = np.linalg.norm(lists.rows[start:end], axis=1)
        assert np.all(np.diff(lengths) <= 1e-6)


def test_scores_are_exact_and_no_position_comes_twice(lists: InvertedLists) -> None:
    for question in questions(10):
        for positions, scores in (lists.best(question, 50), lists.near(question, 600)):
            assert len(np.unique(positions)) == len(positions) == len(scores)
            np.testing.assert_allclose(scores, ROWS[(positions - 1) // 3] @ question, rtol=1e-5, atol=1e-6)


def recall(lists: InvertedLists, enough: float = ENOUGH, allowed: Mask | None = None) -> float:
    """Of the best fifty, on average of the questions."""
    found = []
    for question in questions():
        scores = ROWS @ question
        if allowed is not None:
            scores[~allowed[POSITIONS]] = -np.inf
        true = POSITIONS[np.argsort(-scores)[:50]]
        found.append(np.isin(true, lists.best(question, 50, allowed=allowed, enough=enough)[0]).mean())
    return float(np.mean(found))


def passing(share: float) -> Mask:
    return np.random.default_rng(2).random(3 * N) < share


def test_nearly_all_of_the_best_are_found_in_few_of_the_rows(lists: InvertedLists) -> None:
    assert recall(lists) > 0.99
    assert np.mean([len(lists.best(question, 50)[0]) for question in questions()]) < N * 0.3


def test_what_is_near_are_most_of_the_best(lists: InvertedLists) -> None:
    found = []
    for question in questions():
        positions, _ = lists.near(question, N // 20)
        assert N // 20 <= len(positions) < N // 10
        found.append(np.isin(POSITIONS[np.argsort(-(ROWS @ question))[:50]], positions).mean())
    assert np.mean(found) > 0.95


def test_being_content_with_less_finds_more(lists: InvertedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "FIRST", 0)
    monkeypatch.setattr(inverted_lists, "FIRST_PER_WANTED", 4)
    recalls = [recall(lists, enough) for enough in (2.0, 1.2, 0.2)]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.95
    assert recalls[-1] > 0.999


@pytest.mark.parametrize("few", [0, N])
@pytest.mark.parametrize("share", [0.3, 0.1])
def test_filters_leave_only_what_they_allow_and_nearly_all_of_the_best_of_it(
    lists: InvertedLists, monkeypatch: pytest.MonkeyPatch, share: float, few: int
) -> None:
    monkeypatch.setattr(inverted_lists, "FEWEST_FILTERED", few)
    allowed = passing(share)
    assert recall(lists, allowed=allowed) > 0.99
    for question in questions(5):
        excluded = lists.best(question, 5, allowed=allowed)[0]
        positions, scores = lists.best(question, 50, allowed=allowed, excluded=excluded[::2])
        assert allowed[positions].all()
        assert not np.isin(excluded[::2], positions).any()
        np.testing.assert_allclose(scores, ROWS[(positions - 1) // 3] @ question, rtol=1e-5, atol=1e-6)


def test_filters_that_take_just_what_is_promising(lists: InvertedLists, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_lists, "FEWEST_FILTERED", 100)
    found = []
    for question in questions(20):
        order = POSITIONS[np.argsort(-(ROWS @ question))]
        allowed = np.ones(3 * N, np.bool_)
        allowed[order[: N // 2]] = False
        found.append(np.isin(order[N // 2 :][:50], lists.best(question, 50, allowed=allowed)[0]).mean())
    assert np.mean(found) > 0.9


@pytest.mark.parametrize("spared", [0, 5])
def test_exclusions_that_take_just_what_is_promising(lists: InvertedLists, spared: int) -> None:
    """All that is read first, or all but a few."""
    for question in questions(5):
        excluded = np.sort(lists.near(question, 2_500)[0])[spared:]
        positions, scores = lists.best(question, 20, excluded=excluded)
        true = ROWS @ question
        true[(excluded - 1) // 3] = -np.inf
        assert not np.isin(excluded, positions).any()
        assert set(POSITIONS[np.argsort(-true)[:20]]) <= set(positions)
        np.testing.assert_allclose(scores, ROWS[(positions - 1) // 3] @ question, rtol=1e-5, atol=1e-6)


def test_of_what_lies_against_a_question_the_shortest_come_first() -> None:
    """Everything leans one way; whoever asks turns away from it, and a little aside."""
    rng = np.random.default_rng(3)
    directions = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    directions[:, 0] = 2
    leaning = np.asarray(directions * rng.lognormal(-1, 0.5, (N, 1)), np.float32)
    opposed = InvertedLists.of(leaning, POSITIONS, seed=0)
    found, read = [], []
    for aside in rng.normal(0, 0.1, (20, D)):
        question = np.append(-1, aside[1:]).astype(np.float32)
        scores, positions = leaning @ question, opposed.best(question, 50)[0]
        assert scores.max() < 0
        found.append(np.isin(POSITIONS[np.argsort(-scores)[:50]], positions).mean())
        read.append(len(positions))
    assert np.mean(found) > 0.99
    assert np.mean(read) < N * 0.4


def test_whoever_wants_more_than_there_is_gets_everything(lists: InvertedLists) -> None:
    assert len(lists.best(questions(1)[0], 2 * N)[0]) == N
    assert len(lists.near(questions(1)[0], 2 * N)[0]) == N


def test_nothing_that_may_be_is_nothing(lists: InvertedLists) -> None:
    assert len(lists.best(questions(1)[0], 5, allowed=np.zeros(3 * N, np.bool_))[0]) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_a_few_rows(n: int) -> None:
    few = InvertedLists.of(ROWS[:n], POSITIONS[:n], seed=0)
    for question in (*questions(3), np.zeros(D, np.float32)):
        assert sorted(few.best(question, n)[0].tolist()) == POSITIONS[:n].tolist()


def test_rows_of_zeros_and_rows_that_are_all_alike_are_borne() -> None:
    rows = np.vstack([np.zeros((10, D), np.float32), np.ones((30, D), np.float32)])
    alike = InvertedLists.of(rows, np.arange(40, dtype=np.int32), seed=0)
    positions, scores = alike.best(np.ones(D, np.float32), 5)
    assert len(positions) >= 5
    assert scores.max() == D
    assert np.isfinite(alike.near(-np.ones(D, np.float32), 3)[1]).all()


def test_the_same_seed_gives_the_same_lists(lists: InvertedLists) -> None:
    again = InvertedLists.of(ROWS, POSITIONS, seed=0)
    for name, array in lists.parts().items():
        np.testing.assert_array_equal(again.parts()[name], array)


def test_comes_back_from_disk_unchanged_without_pickle(lists: InvertedLists, tmp_path: Path) -> None:
    for name, array in lists.parts().items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=False)
    arrays = {f"lists.{name}": np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in lists.parts()}
    loaded = InvertedLists.among(arrays)
    assert loaded is not None
    for question in questions(5):
        for one, other in zip(lists.best(question, 20), loaded.best(question, 20), strict=True):
            np.testing.assert_array_equal(one, other)
    assert InvertedLists.among({"rows": ROWS}) is None
