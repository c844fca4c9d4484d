"""Live counts: the contract, shares by hand, the prior, and the half-life that is answered by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset, Interactions
from models.live.counters import HALF_LIVES
from models.live.state import DayLedger, LiveState
from models.live.stream import live_state_of
from models.retrieval.live_counts import (
    DEFAULT,
    PSEUDO_EVENTS,
    ExpectedCounts,
    LiveCounts,
    fit_live_counts,
    refit_live_counts,
)
from tests.recommender_contract import (
    DAY,
    FAN_OF_A,
    GROUP_A,
    LIVE,
    N_ITEMS,
    NEVER_SEEN,
    NEW_ITEMS,
    NOW,
    RecommenderContract,
    ask,
    live_visits,
    toy_content,
    toy_dataset,
    toy_items,
)


class TestLiveCounts(RecommenderContract):
    reason_codes = frozenset({"popular", "live"})
    is_personal = False
    answers_everyone = True

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return fit_live_counts(dataset, content, progress=unwatched)


@pytest.fixture(scope="module")
def fitted() -> LiveCounts:
    return fit_live_counts(toy_dataset(), toy_content(), progress=unwatched)


def later(live: LiveState, item: int, at: float, *, users: int = 1) -> None:
    """So many newcomers come to the item at that time."""
    newcomers = np.arange(users, dtype=np.int32) + 500
    live.fold(DayLedger().changes(newcomers, np.full(users, item, np.int32), np.full(users, 2.0), np.full(users, at)))


def test_shares_are_the_counts_and_a_few_events_spread_as_all_time_popularity_is(fitted: LiveCounts) -> None:
    query = ask(live=LIVE)
    totals = LIVE.totals() + fitted.expected
    background = totals / totals.sum()
    for row, counts in enumerate(LIVE.counts(NOW)):
        expected = (counts + PSEUDO_EVENTS * background) / (counts.sum() + PSEUDO_EVENTS)
        np.testing.assert_allclose(np.exp(fitted.log_shares(query)[row]), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(fitted.log_shares(query)[-1]), background, rtol=1e-5)


def test_shares_of_each_half_life_add_up_to_one(fitted: LiveCounts) -> None:
    wider = fitted.with_new_items(NEW_ITEMS)
    for speaker in (fitted, wider):
        for query in (ask(), ask(live=LIVE), ask(live=LiveState()), ask(live=live_visits((0, N_ITEMS + 9)))):
            shares = speaker.log_shares(query)
            assert shares.shape == (len(HALF_LIVES) + 1, speaker.n_items)
            assert shares.dtype == np.float32
            np.testing.assert_allclose(np.exp(shares).sum(axis=1), 1, rtol=1e-5)


def test_the_first_click_after_three_years_of_silence_neither_empties_nor_floods_the_list(fitted: LiveCounts) -> None:
    """It brings its item up; all others keep their all-time shares among themselves, and not much less in all."""
    live, wakes = live_state_of(toy_dataset()), NOW + 3 * 365 * DAY
    query = Query(limit=N_ITEMS, at=wakes, live=live)
    asleep = np.exp(fitted.log_shares(query))
    later(live, 20, wakes)
    awake = np.exp(fitted.log_shares(query))
    others = np.delete(np.arange(N_ITEMS), 20)
    for row in range(len(HALF_LIVES)):
        # By the longest half-life a hundred-thousandth of what was counted is still there.
        np.testing.assert_allclose(asleep[row], asleep[-1], rtol=5e-3)
        assert awake[row, 20] > awake[row, others].max()
        among = awake[row, others].sum()
        np.testing.assert_allclose(awake[row, others] / among, asleep[-1, others] / asleep[-1, others].sum(), rtol=5e-3)
        assert among > 0.4
    assert fitted.recommend(query).positions.tolist()[0] == 20
    assert len(fitted.recommend(query).positions) == N_ITEMS


def test_what_people_turn_to_now_comes_first_soon_and_goes_again(fitted: LiveCounts) -> None:
    live, hourly = live_state_of(toy_dataset()), replace(fitted, served=0)
    later(live, NEVER_SEEN, NOW, users=3)
    assert hourly.recommend(Query(limit=1, at=NOW + 60, live=live)).positions.tolist() == [NEVER_SEEN]
    a_week_later = Query(limit=N_ITEMS, at=NOW + 7 * DAY, live=live)
    assert hourly.recommend(a_week_later).positions.tolist().index(NEVER_SEEN) > N_ITEMS // 2


def test_without_live_signals_it_answers_as_fitted(fitted: LiveCounts) -> None:
    at_the_end = Query(limit=3, at=toy_dataset().ends_at, live=live_state_of(toy_dataset()))
    expected = fitted.log_shares(at_the_end)
    for at in (0.0, at_the_end.at, NOW + 400 * DAY):
        np.testing.assert_allclose(fitted.log_shares(Query(limit=3, at=at)), expected, rtol=1e-6)
    positions = np.arange(3, dtype=np.int32)
    assert {reason.code for reason in fitted.reasons(ask(), positions)} == {"popular"}
    assert {reason.code for reason in fitted.reasons(at_the_end, positions)} == {"live"}


def test_signals_may_know_fewer_or_more_items_than_the_release(fitted: LiveCounts) -> None:
    """What they don't know nobody came to; what the release doesn't know is left out, also from the whole."""
    fewer, more = live_visits((0, 1), (0, 2)), live_visits((0, 1), (0, 2), (N_ITEMS, N_ITEMS + 7))
    assert (len(fewer), len(more)) == (3, N_ITEMS + 8)
    np.testing.assert_allclose(fitted.log_shares(ask(live=more)), fitted.log_shares(ask(live=fewer)), rtol=1e-6)
    wider = fitted.with_new_items(NEW_ITEMS)
    assert wider.recommend(ask(live=more, limit=4)).positions.tolist()[1:] != [1, 2, N_ITEMS + 1]
    assert wider.log_shares(ask(live=more))[0, N_ITEMS] > wider.log_shares(ask(live=fewer))[0, N_ITEMS] + 1


def lopsided() -> tuple[Dataset, Scores]:
    """Group A is met ten times as often as group B, and neither much."""
    whole = toy_dataset()
    of_a = np.isin(whole.interactions.items, GROUP_A)
    index = np.arange(len(of_a))
    kept = np.flatnonzero(np.where(of_a, index % 10 == 0, index % 100 == 0))
    return whole.with_interactions(whole.interactions.take(kept)), toy_content()


def test_a_new_item_is_expected_what_its_content_was() -> None:
    dataset, content = lopsided()
    wider = fit_live_counts(dataset, content, progress=unwatched).with_new_items(NEW_ITEMS)
    totals = live_state_of(dataset).totals()
    of_a, of_b = wider.expected[[N_ITEMS, N_ITEMS + 1]]
    assert of_a > 1.5 * of_b
    for expected in (of_a, of_b):
        assert 0.03 <= expected <= 3
    for query in (ask(), ask(live=live_state_of(dataset))):
        shares = wider.log_shares(query)
        assert (shares[:, N_ITEMS] > shares[:, N_ITEMS + 1]).all()
        # However promising, what nobody met doesn't come before what is met all the time.
        assert shares[-1, N_ITEMS] < shares[-1, totals.argmax()]


def test_expectations_are_bounded_whatever_the_content_says() -> None:
    expect = ExpectedCounts(np.array([1e4, 0], np.float32))
    assert expect(np.array([[1.0], [-1.0]], np.float32)).tolist() == pytest.approx([3.0, 0.03])
    assert expect(np.empty((0, 1), np.float32)).shape == (0,)


def test_expectations_are_a_ridge_regression_of_log_counts() -> None:
    """With content that tells everything and plenty of items, the counts come back, but for what kept them above 0."""
    content = np.repeat(np.eye(2, dtype=np.float32), 2_000, axis=0)
    totals = np.repeat([2.0, 0.5], 2_000)
    assert ExpectedCounts.fit(content, totals)(np.eye(2, dtype=np.float32)).tolist() == pytest.approx(
        [2.03, 0.53], rel=0.01
    )


def crowds(days: int, per_day: int) -> Dataset:
    """Each day's visitors, each a new user, come to that day's item alone."""
    n = days * per_day
    index = np.arange(n)
    return Dataset(
        Interactions(
            index.astype(np.int32), (index // per_day % 24).astype(np.int32), np.ones(n, np.float32),
            np.ones(n, np.int8), np.full(n, np.nan, np.float32), NOW + index * DAY / per_day,
        ),
        toy_items(),
        n_users=n,
    )  # fmt: skip


def test_the_half_life_follows_what_foretells_the_next_choice() -> None:
    """Where only today counts it is one of hours; where nothing changes, a long one."""
    brief = fit_live_counts(crowds(60, 12), toy_content(), progress=unwatched)
    assert HALF_LIVES[brief.served] <= DAY
    rng, steady = np.random.default_rng(0), crowds(60, 12)
    weights = np.linspace(1, 0.1, N_ITEMS) ** 3
    items = rng.choice(N_ITEMS, len(steady.interactions), p=weights / weights.sum()).astype(np.int32)
    steady = steady.with_interactions(replace(steady.interactions, items=items))
    assert HALF_LIVES[fit_live_counts(steady, toy_content(), progress=unwatched).served] >= 16 * DAY


def test_too_few_choices_leave_the_default() -> None:
    dataset = toy_dataset()
    few = dataset.with_interactions(dataset.interactions.take(slice(0, 60)))
    assert fit_live_counts(few, toy_content(), progress=unwatched).served == DEFAULT


def test_fitted_again_it_keeps_the_half_life_and_counts_anew(fitted: LiveCounts) -> None:
    dataset = toy_dataset()
    earlier = dataset.with_interactions(dataset.interactions.take(slice(0, 200)))
    again = refit_live_counts(replace(fitted, served=4), earlier, toy_content())
    assert again.served == 4
    totals = 2 * np.bincount(earlier.interactions.items, minlength=N_ITEMS)
    np.testing.assert_allclose(again.as_fitted[-1], totals)


@pytest.mark.parametrize("n", [0, 1])
def test_no_interactions_and_next_to_no_items(n: int) -> None:
    dataset = toy_dataset()
    items = replace(
        dataset.items,
        categories=[("a",)] * n, tags=[()] * n, texts=[""] * n, creators=[None] * n, kinds=[None] * n,
        published=np.full(n, np.nan), features=np.empty((n, 0), np.float32),
    )  # fmt: skip
    empty = Dataset(dataset.interactions.take(slice(0, 0)), items, 0)
    fitted = fit_live_counts(empty, toy_content()[:n], progress=unwatched)
    for live in (None, LIVE, LiveState()):
        assert fitted.recommend(ask(live=live)).positions.tolist() == list(range(n))
        assert len(fitted.with_new_items(NEW_ITEMS).recommend(ask(FAN_OF_A, live=live)).positions) == n + 2


def test_a_release_of_other_half_lives_is_refused(fitted: LiveCounts) -> None:
    parameters, arrays = fitted.parts()
    with pytest.raises(ValueError, match="half-lives"):
        LiveCounts.from_parts({**parameters, "half_lives": [60.0]}, arrays)
