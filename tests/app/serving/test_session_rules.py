"""The recipe of a session: each rule by itself, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.session_rules import Role, SessionRules, discounts, is_personal, ordered, split

RULES = SessionRules()
NOBODY = -1


def rows(*given: int) -> np.ndarray:
    return np.array(given, np.int32)


def roles(*given: Role) -> np.ndarray:
    return np.array(given, np.uint8)


@pytest.mark.parametrize(
    ("role", "fraction", "personal"),
    [
        (Role.NEXT, 0.69, True),
        (Role.NEXT, 0.7, False),
        (Role.PERSONAL, 0.7, True),
        (Role.PERSONAL, 0.69, False),
        (Role.CHOSEN, 0.0, False),
        (Role.OPENING, 0.0, False),
        (Role.POPULAR, 0.1, False),
    ],
)
def test_a_disappointment_hands_over_and_a_success_of_the_personal_one_stays(
    role: Role, fraction: float, personal: bool
) -> None:
    assert is_personal(role, fraction, RULES) is personal


def test_what_is_not_expected_to_be_heard_is_split_off() -> None:
    kept, listening, dropped = split(rows(7, 8, 9), np.array([0.9, 0.49, 0.5]), RULES)
    assert (kept.tolist(), listening.tolist(), dropped.tolist()) == ([7, 9], [0.9, 0.5], [8])


def test_neighbours_of_the_skipped_lose_by_how_near_they_are() -> None:
    factors = discounts(rows(NOBODY, NOBODY, NOBODY), near=np.array([0, 1, 0.4]), heard=[], rules=RULES)
    assert factors.tolist() == pytest.approx([1.0, 0.5, 0.8])


@pytest.mark.parametrize(
    ("heard", "factor"),
    [([], 1.0), ([5], 1.0), ([5, 5], 0.8), ([5, 5, 5, 6, 5], 0.64), ([6, 5, 5], 1.0), ([NOBODY, NOBODY], 1.0)],
)
def test_an_artist_tires_with_each_time_in_a_row(heard: list[int], factor: float) -> None:
    factors = discounts(rows(5, NOBODY), near=np.zeros(2), heard=heard, rules=RULES)
    assert factors.tolist() == pytest.approx([factor, 1.0])


def test_greedy_goes_by_expected_listening_and_ties_by_the_recommender() -> None:
    placed = ordered(np.array([0.7, 0.9, 0.7]), roles(*[Role.NEXT] * 3), np.ones(3), RULES, None)
    assert placed.order.tolist() == [1, 0, 2]
    assert np.isnan(placed.propensities).all()


def test_only_the_first_candidates_are_put_in_order() -> None:
    placed = ordered(np.array([0.6, 0.7, 0.9]), roles(*[Role.NEXT] * 3), np.ones(3), SessionRules(candidates=2), None)
    assert placed.order.tolist() == [1, 0, 2]
    assert (np.diff(placed.scores) <= 0).all()


def test_fills_weigh_what_the_lowest_does_and_the_popular_a_third_of_it() -> None:
    who = roles(Role.NEXT, Role.NEXT, Role.ARTIST, Role.POPULAR)
    placed = ordered(np.array([0.9, 0.6, 1.0, 1.0]), who, np.ones(4), RULES, np.random.default_rng(0))
    weights = np.exp(placed.logits)
    assert weights[0] / weights[1] == pytest.approx(np.exp(0.3 / RULES.temperature))
    assert weights[2] == pytest.approx(weights[1])
    assert weights[3] == pytest.approx(weights[1] / 3)


def test_what_is_drawn_first_comes_as_often_as_its_propensity_says() -> None:
    generator = np.random.default_rng(20)
    expected, who = np.array([0.9, 0.8, 0.6]), roles(*[Role.NEXT] * 3)
    draws = [ordered(expected, who, np.ones(3), RULES, generator) for _ in range(4_000)]
    shares = np.bincount([int(draw.order[0]) for draw in draws], minlength=3) / len(draws)
    softmax = np.exp(expected / RULES.temperature) / np.exp(expected / RULES.temperature).sum()
    assert shares == pytest.approx(softmax, abs=0.025)
    for draw in draws[:20]:
        assert draw.propensities[0] == pytest.approx(softmax[draw.order[0]])


def test_a_discount_lowers_and_a_boost_raises_a_weight() -> None:
    placed = ordered(np.array([0.8, 0.8, 0.8]), roles(*[Role.NEXT] * 3), np.array([0.5, 1.0, 2.0]), RULES, None)
    assert placed.order.tolist() == [2, 1, 0]


def test_without_candidates_fills_stand_alone() -> None:
    placed = ordered(np.ones(2), roles(Role.POPULAR, Role.POPULAR), np.ones(2), RULES, np.random.default_rng(0))
    assert sorted(placed.order.tolist()) == [0, 1]
    assert placed.propensities.tolist() == pytest.approx([0.5, 1.0])


def test_exactly_as_much_as_needed_is_enough_in_the_precision_of_a_session() -> None:
    kept = float(np.float32(0.7))
    assert kept < RULES.switch_below
    assert is_personal(Role.PERSONAL, kept, RULES)
    assert not is_personal(Role.NEXT, kept, RULES)
