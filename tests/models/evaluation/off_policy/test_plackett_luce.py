"""Probabilities of drawn rankings agree with enumeration and with what serving writes down."""

from itertools import permutations

import numpy as np
import pytest

from app.serving.exploration import logits_of, propensities_of
from models.evaluation.off_policy.plackett_luce import NOBODY, certain, marginals, walk

LOGITS = logits_of(6, 0.5)
EVERY = np.array(list(permutations(range(6))))


def probability_of_each(logits: np.ndarray) -> np.ndarray:
    return np.array([np.prod(propensities_of(logits[order])) for order in EVERY])


def test_a_walk_gives_the_propensities_that_serving_writes_down() -> None:
    chosen = EVERY[::37]
    steps = list(walk(np.tile(LOGITS, (len(chosen), 1)), chosen))
    walked = np.stack([step[np.arange(len(chosen)), chosen[:, place]] for place, step in enumerate(steps)], axis=1)

    assert walked == pytest.approx(np.array([propensities_of(LOGITS[order]) for order in chosen]), rel=1e-12)
    assert np.stack(steps).sum(axis=2) == pytest.approx(np.ones((6, len(chosen))))


def test_what_is_shown_cannot_be_drawn_again_and_a_pin_takes_nothing_away() -> None:
    first, pin, third = walk(LOGITS[None, :], np.array([[2, NOBODY, 0]]))

    assert pin[0, 2] == third[0, 2] == 0
    assert (pin == third).all()
    assert first[0, 2] > 0


def test_lists_of_several_lengths_walk_together() -> None:
    short = np.where(np.arange(6) < 3, LOGITS, -np.inf)
    [both] = walk(np.stack([LOGITS, short]), np.array([[0], [0]]))
    [alone] = walk(LOGITS[None, :3], np.array([[0]]))

    assert both[1].tolist() == [*alone[0], 0, 0, 0]


def test_a_policy_that_does_not_draw_shows_the_best_of_what_is_left() -> None:
    first, second = walk(certain(np.array([[2.0, 1.0, 3.0]])), np.array([[2, 1]]))

    assert first.tolist() == [[0, 1, 0]]
    assert second.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("logits", [LOGITS, logits_of(6, 0.1), np.zeros(6), LOGITS[[3, 1, 5, 0, 2, 4]] + 100])
def test_marginals_are_those_of_all_rankings_together(logits: np.ndarray) -> None:
    probability = probability_of_each(logits)
    every = [[probability[EVERY[:, place] == item].sum() for item in range(6)] for place in range(4)]

    assert marginals(logits, 4) == pytest.approx(np.array(every), abs=1e-12)


@pytest.mark.parametrize("logits", [logits_of(1_000, 0.5), np.zeros(1_000), np.zeros(50)], ids=len)
def test_marginals_of_many_candidates_add_up(logits: np.ndarray) -> None:
    found = marginals(logits, 10)

    assert found.sum(axis=1) == pytest.approx(np.ones(10), abs=1e-10)
    assert found[0] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
    if not logits.any():
        assert found == pytest.approx(np.full((10, len(logits)), 1 / len(logits)))


def test_no_more_places_than_candidates() -> None:
    assert marginals(LOGITS[:2], 5) == pytest.approx(np.array([[0.8, 0.2], [0.2, 0.8]]))


def test_logits_that_floats_cannot_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="too far apart"):
        marginals(np.array([0.0, -800.0, -801.0]), 2)
