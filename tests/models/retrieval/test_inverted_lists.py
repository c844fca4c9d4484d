"""Inverted lists: nearly all of the best are found, exactly scored, and all of them where everything is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.contracts import Scores
from models.retrieval.inverted_lists import InvertedLists

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
        for positions, scores in (lists.best(question, 50), lists.near(question, 6)):
            assert len(np.unique(positions)) == len(positions) == len(scores)
            np.testing.assert_allclose(scores, ROWS[(positions - 1) // 3] @ question, rtol=1e-5, atol=1e-6)


def test_nearly_all_of_the_best_are_found_in_few_of_the_rows(lists: InvertedLists) -> None:
    found, read = [], []
    for question in questions():
        true = POSITIONS[np.argsort(-(ROWS @ question))[:50]]
        positions, _ = lists.best(question, 50)
        found.append(np.isin(true, positions).mean())
        read.append(len(positions) / N)
    assert np.mean(found) > 0.99
    assert np.mean(read) < 0.4


def test_reckoning_with_rows_further_aside_finds_more(lists: InvertedLists) -> None:
    def share(deviations: float) -> float:
        true = [POSITIONS[np.argsort(-(ROWS @ question))[:50]] for question in questions()]
        found = [lists.best(question, 50, deviations=deviations)[0] for question in questions()]
        return float(np.mean([np.isin(one, other).mean() for one, other in zip(true, found, strict=True)]))

    shares = [share(deviations) for deviations in (-2, 0, 4)]
    assert shares == sorted(shares)
    assert shares[0] < 0.9
    assert shares[-1] > 0.999


def test_whoever_wants_more_than_there_is_gets_everything(lists: InvertedLists) -> None:
    positions, _ = lists.best(questions(1)[0], N)
    assert len(positions) == N
    assert len(lists.near(questions(1)[0], 10_000)[0]) > N / 4


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
