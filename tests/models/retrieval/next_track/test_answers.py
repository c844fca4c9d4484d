"""From what recommenders of the next track claim to what is answered: added up and cut as a plain loop does it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from models.retrieval.next_track.answers import Claims, Heard, NextOpinion, Tally, best_of
from tests.next_track_toys import after


def claims_of(*scored: tuple[int, float]) -> Claims:
    return Claims(np.array([track for track, _ in scored], np.int32), np.array([s for _, s in scored], np.float32))


def drawn(seed: int, n: int, n_items: int) -> Claims:
    rng = np.random.default_rng(seed)
    return Claims(rng.integers(0, n_items, n).astype(np.int32), rng.normal(size=n).astype(np.float32))


@pytest.mark.parametrize("sizes", [(40, 300, 7), (0, 5, 0), (0, 0), (25,)])
def test_a_tally_adds_up_what_each_says_of_each_track(sizes: tuple[int, ...]) -> None:
    said = [drawn(seed, n, 50) for seed, n in enumerate(sizes)]
    tally = Tally.of(said, 50)
    assert tally.positions.tolist() == sorted({track for each in said for track in each.positions.tolist()})
    for row, each in zip(tally.scores, said, strict=True):
        wanted: Counter[int] = Counter()
        for track, score in zip(*(array.tolist() for array in each), strict=True):
            wanted[track] += score
        np.testing.assert_allclose(row, [max(wanted[track], 0) for track in tally.positions.tolist()], atol=1e-6)


def test_the_best_are_those_of_each_and_what_equals_the_last_of_them() -> None:
    said = [claims_of((1, 5), (2, 4), (3, 3), (9, -1)), claims_of((6, 2), (7, 2), (8, 1), (6, 0.0))]
    tally = Tally.of(said, 10)
    assert tally.positions[tally.best(1)].tolist() == [1, 6, 7]
    assert tally.positions[tally.best(2)].tolist() == [1, 2, 6, 7]
    assert tally.positions[tally.best(100)].tolist() == [1, 2, 3, 6, 7, 8], "nobody is for 9"


def test_an_opinion_holds_what_is_spoken_for() -> None:
    opinion = NextOpinion.of(claims_of((4, 1), (2, 3), (4, 0.5), (3, 1), (3, -2)), 5)
    assert opinion.positions.tolist() == [2, 4]
    assert opinion.scores.tolist() == [3, 1.5]


def test_the_best_come_first_and_of_equal_ones_the_lowest_position() -> None:
    scores = np.array([1, 3, 2, 3, 2, 0], np.float32)
    for limit, wanted in ((2, [1, 3]), (3, [1, 3, 2]), (9, [1, 3, 2, 4, 0, 5]), (0, [])):
        assert best_of(np.arange(6, dtype=np.int32), scores, limit).positions.tolist() == wanted


def test_strengths_fall_from_liked_to_left() -> None:
    query = after(1, 2, 3, 4, 5, fractions=[1.0, 0.7, 0.5, 0.0, float("nan")])
    np.testing.assert_allclose(Heard(query.positions, query.fractions).strengths, [1, 1, 0.5, -0.5, 1], atol=1e-6)
