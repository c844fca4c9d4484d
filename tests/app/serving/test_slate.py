"""Boost, diversity and pins, on slates small enough to see the right answer."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.catalog.rules import Promotion, Window
from app.serving.slate import Shown, boosted, diversified, pins_of, with_pins
from models.contracts import Reason


def shown(row: int, score: float) -> Shown:
    return Shown(row, score, "blend", False, Reason("taste"))


def promotion(row: int, *, position: int | None = None, boost: float | None = None) -> Promotion:
    return Promotion(row, position, boost, (), Window(), None, 0)


SLATE = [shown(row, 10.0 - row) for row in range(6)]


def rows(slate: list[Shown]) -> list[int]:
    return [item.row for item in slate]


def test_a_boost_multiplies_the_lead_over_the_last_candidate() -> None:
    slate = boosted(SLATE, [promotion(3, boost=2.25)])
    lead = SLATE[3].score - SLATE[-1].score
    assert next(item.score for item in slate if item.row == 3) == SLATE[-1].score + 2.25 * lead
    assert rows(slate) == [0, 3, 1, 2, 4, 5]


def test_a_boost_works_where_scores_are_negative() -> None:
    negative = [shown(row, -1.0 - row) for row in range(5)]
    assert rows(boosted(negative, [promotion(3, boost=10.0)]))[0] == 3


def test_a_boosted_item_says_that_it_is_promoted() -> None:
    item = next(item for item in boosted(SLATE, [promotion(2, boost=1.5)]) if item.row == 2)
    assert item.promoted
    assert item.reason.code == "promoted"


def test_a_boost_of_an_item_that_is_not_there_changes_nothing() -> None:
    assert boosted(SLATE, [promotion(99, boost=5.0)]) == SLATE


def test_diversity_zero_keeps_the_order() -> None:
    assert diversified(SLATE, [("a",)] * 6, 0.0, 3) == SLATE


def test_diversity_prefers_another_category_to_a_better_score() -> None:
    categories = [("a",), ("a",), ("b",), ("a",), ("c",), ("a",)]
    assert rows(diversified(SLATE, categories, 0.8, 3))[:3] == [0, 2, 4]


@given(
    scores=st.lists(st.floats(-50, 50), min_size=2, max_size=20),
    diversity=st.floats(0.01, 1),
    names=st.lists(st.sampled_from("abc"), min_size=20, max_size=20),
)
def test_diversified_scores_never_rise_and_nothing_is_lost(
    scores: list[float], diversity: float, names: list[str]
) -> None:
    slate = [shown(row, score) for row, score in enumerate(sorted(scores, reverse=True))]
    arranged = diversified(slate, [(name,) for name in names[: len(slate)]], diversity, 5)
    assert sorted(rows(arranged)) == rows(slate)
    new_scores = [item.score for item in arranged]
    assert all(a >= b - 1e-9 for a, b in pairwise(new_scores))


def test_a_pin_takes_its_position_and_the_rest_moves_down() -> None:
    assert rows(with_pins(SLATE, {2: 99})) == [0, 99, 1, 2, 3, 4, 5]


def test_a_pinned_item_that_was_in_the_slate_is_not_there_twice() -> None:
    assert rows(with_pins(SLATE, {1: 4})) == [4, 0, 1, 2, 3, 5]


def test_a_pin_beyond_the_end_goes_to_the_end() -> None:
    assert rows(with_pins(SLATE[:2], {50: 99})) == [0, 1, 99]


def test_two_pins_of_one_position_stand_one_after_the_other() -> None:
    pins = pins_of([promotion(7, position=1), promotion(8, position=1)], {7, 8})
    assert rows(with_pins(SLATE, pins))[:3] == [7, 8, 0]


def test_a_pin_that_the_request_forbids_is_left_out() -> None:
    assert pins_of([promotion(7, position=1)], set()) == {}
