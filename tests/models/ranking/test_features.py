"""What the blend looks at: co-visits by hand, the situation, and surprise."""

from __future__ import annotations

import numpy as np
import pytest

from models.contracts import History, Query, Scores
from models.live.counters import HALF_LIVES
from models.ranking import features
from models.ranking.features import (
    CO_VISITS,
    CONTEXTS,
    LEAST_MET,
    NO_CO_VISITS,
    SHARES,
    STEPS_BACK,
    CoVisits,
    Surprise,
    context_of,
    latest_known,
)
from tests.recommender_contract import NOW, ask, history, live_visits

LEAST = np.log(np.float32(1e-3))


def met_by(query: Query, n: int) -> Scores:
    co_visits = CoVisits.of(query, n)
    assert co_visits is not None
    found = co_visits.features()
    assert found.dtype == np.float32
    some = np.arange(0, n, 2)
    np.testing.assert_array_equal(co_visits.features(some), found[:, some])
    np.testing.assert_array_equal(co_visits.nominees(), np.flatnonzero(np.exp(found[0]) > 1e-3 + LEAST_MET))
    return found


def test_co_visits_are_shares_of_the_visitors_discounted_by_steps_back() -> None:
    """Item 0 led two of three visitors to item 1 and one to item 2; item 5 led its one visitor to item 2."""
    signals = live_visits((0, 1), (0, 1), (0, 2), (5, 2))
    met = np.exp(met_by(ask((0, 5), live=signals), 6)) - 1e-3
    assert met.shape == (len(CO_VISITS), 6)
    np.testing.assert_allclose(met[0], [0, 0.75 * 2 / 3, 1 + 0.75 / 3, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(met[1], [0, 0, 1, 0, 0, 0], atol=1e-6)


def test_co_visits_look_back_so_far_and_no_further() -> None:
    signals = live_visits((0, 60))
    others = tuple(range(1, STEPS_BACK + 1))
    assert met_by(ask((0, *others[1:]), live=signals), 61)[0, 60] > LEAST
    np.testing.assert_array_equal(met_by(ask((0, *others), live=signals), 61), LEAST)


def test_where_nobody_met_the_items_all_are_alike() -> None:
    found = met_by(ask((9, 5_000), live=live_visits((0, 1))), 4)
    np.testing.assert_array_equal(found, np.full((2, 4), LEAST))
    assert NO_CO_VISITS == LEAST


@pytest.mark.parametrize("query", [ask((0, 1)), ask((), live=live_visits((0, 1)))], ids=["nobody counts", "no history"])
def test_without_anything_to_go_by_there_are_none(query: Query) -> None:
    assert CoVisits.of(query, 4) is None


def test_nominees_are_met_by_more_than_a_chance_visitor() -> None:
    """Of item 0's hundred visitors half went on to item 1; ten steps back one of them counts too little."""
    live = live_visits(*[(0, 1 + user % 2 * (user % 7)) for user in range(100)])
    for seeds, few in ((0,), False), ((0, *range(20, 29)), True):
        co_visits = CoVisits.of(ask(seeds, live=live), 10)
        assert co_visits is not None
        assert co_visits.nominees().tolist() == ([1] if few else [1, 2, 3, 4, 5, 6, 7])


def test_co_visits_of_items_that_the_release_does_not_know_are_left_out() -> None:
    """Item 7 leads to items 2 and 8; whoever speaks of three items hears of item 2 alone."""
    found = met_by(ask((7,), live=live_visits((7, 2, 8))), 3)
    assert found.shape == (2, 3)
    assert (found > LEAST).tolist() == [[False, False, True]] * 2


def test_among_very_many_items_co_visits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    query = ask((0, 5, 9), live=live_visits((0, 1), (0, 1), (0, 2, 30), (5, 2), (9, 7, 2)))
    dense = met_by(query, 12)
    monkeypatch.setattr(features, "_MOST_DENSE", 4)
    np.testing.assert_array_equal(met_by(query, 12), dense)


def test_no_items_no_co_visits() -> None:
    assert met_by(ask((0,), live=live_visits((0, 1))), 0).shape == (2, 0)


def test_the_item_that_leads_is_the_one_whose_visitors_met_most_of_another() -> None:
    """Item 2 was met by all visitors of item 5, the newest, and a third of those of item 0; item 1 by two thirds."""
    co_visits = CoVisits.of(ask((0, 5), live=live_visits((0, 1), (0, 1), (0, 2), (5, 2))), 6)
    assert co_visits is not None
    assert co_visits.seeds == [5, 0]
    positions = np.array([2, 4, 1], np.int32)
    assert co_visits.leading(positions, {5, 0}) == [5, None, 0]
    assert co_visits.leading(positions, {0, 9}) == [0, None, 0]
    assert co_visits.leading(np.empty(0, np.int32), {5}) == []
    nowhere = CoVisits.of(ask((0, 5), live=live_visits((3, 4))), 6)
    assert nowhere is not None
    assert nowhere.leading(positions, {5, 0}) == [None, None, None]


def shares(n: int) -> Scores:
    """Item i has the logarithm -i by the half-life of four days, and something else by all others."""
    found = np.full((len(SHARES), n), 100, np.float32)
    found[HALF_LIVES.index(4 * 86_400)] = -np.arange(n)
    return found


def situation(query: Query, n: int) -> Scores:
    return context_of(query, shares(n)[:, latest_known(query, n)])


def test_the_situation_says_how_known_how_long_ago_and_how_current() -> None:
    found = situation(ask((4, 1, 2, 6)), 8)
    np.testing.assert_allclose(found, [np.log1p(4), 0, np.log1p(60), -3, -6], rtol=1e-6)
    assert len(found) == len(CONTEXTS)
    assert found.dtype == np.float32


def test_the_situation_of_whoever_is_not_known() -> None:
    for query in (ask(), ask((8, 9))):
        assert situation(query, 8).tolist() == [0, 1, 0, 0, 0]
    assert situation(ask((0,)), 0).tolist() == [0, 1, 0, 0, 0]


def test_the_situation_leaves_items_that_the_release_does_not_know_out_of_the_taste() -> None:
    np.testing.assert_allclose(situation(ask((4, 9_000)), 8)[[0, 3, 4]], [np.log1p(2), -4, -4], rtol=1e-6)


def test_a_past_that_lies_in_the_future_is_just_now() -> None:
    early = Query(limit=1, at=NOW - 86_400, history=history((1,)))
    assert situation(early, 8)[2] == 0


def test_a_history_without_entries_is_like_none() -> None:
    assert situation(Query(limit=1, at=NOW, history=History.empty()), 8)[1] == 1


def test_surprise_is_distance_from_what_the_source_usually_says() -> None:
    sample = np.array([[1.0, 10.0, 0.0], [3.0, 14.0, 0.0]], np.float32)
    found = Surprise.of(sample)(np.array([3.0, 12.0, 0.0], np.float32))
    assert found[0] > 0
    assert found[1:].tolist() == [0.0, 0.0]


def test_surprise_is_bounded_and_silent_without_an_opinion() -> None:
    surprise = Surprise.of(np.array([[1.0, 1.0], [2.0, 1.5]], np.float32))
    assert surprise(np.array([1e9, -1e9], np.float32)).tolist() == [4.0, -4.0]
    assert surprise(np.full(2, -np.inf, np.float32)).tolist() == [0.0, 0.0]


def test_no_opinion_counts_as_a_score_of_zero_beside_opinions() -> None:
    surprise = Surprise.of(np.array([[0.0, -np.inf], [2.0, 2.0]], np.float32))
    found = surprise(np.array([0.0, -np.inf], np.float32))
    assert found[0] == found[1] < 0


def test_surprise_leaves_the_scores_it_is_given_as_they_were() -> None:
    scores = np.array([1.0, -np.inf], np.float32)
    scores.setflags(write=False)
    found = Surprise.of(np.array([[1.0, 1.0], [2.0, 1.5]], np.float32))(scores)
    assert found.dtype == np.float32


def test_surprise_of_no_users_and_of_new_items() -> None:
    surprise = Surprise.of(np.empty((0, 3), np.float32)).widened(5)
    assert surprise(np.arange(5, dtype=np.float32)).tolist() == [0, 1, 2, 3, 4]


def test_new_items_are_as_usual_as_the_median_item() -> None:
    wider = Surprise(np.array([1, 2, 9], np.float32), np.array([1, 0.5, 0.25], np.float32)).widened(5)
    assert wider.mean.tolist() == [1, 2, 9, 2, 2]
    assert wider.scale.tolist() == [1, 0.5, 0.25, 0.5, 0.5]


def test_surprise_where_there_is_no_item() -> None:
    surprise = Surprise.of(np.empty((0, 0), np.float32))
    assert surprise(np.empty(0, np.float32)).shape == (0,)
    assert surprise.widened(1)(np.zeros(1, np.float32)).tolist() == [0.0]
