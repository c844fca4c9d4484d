"""A dataset lived through again: each choice knows exactly what came before it."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.dataset import Dataset, Interactions
from models.live.counters import HALF_LIVES
from models.live.stream import LONGEST_HISTORY, Choice, choices_of, live_state_of
from tests.models.live.recount import Done, counts, latest
from tests.recommender_contract import DAY, NOW, toy_dataset, toy_items


def dataset(*done: tuple[int, int, float]) -> Dataset:
    """One interaction per (user, item, weight), an hour apart; a negative weight is a dislike."""
    users, items, weights = (np.array(column) for column in zip(*done, strict=True))
    return Dataset(
        Interactions(
            users.astype(np.int32), items.astype(np.int32), weights.astype(np.float32),
            np.sign(weights).astype(np.int8), np.full(len(done), np.nan, np.float32),
            NOW + 3_600 * np.arange(len(done), dtype=np.float64),
        ),
        toy_items(),
        n_users=int(users.max()) + 1,
    )  # fmt: skip


def chosen(data: Dataset, start: int = 0, stop: int | None = None, most: int = 1_000) -> list[int]:
    stop = len(data.interactions) if stop is None else stop
    return [choice.chosen for choice in choices_of(data, start, stop, most=most)]


def test_a_choice_is_a_first_meeting_that_was_not_disliked() -> None:
    data = dataset((0, 1, 1), (1, 1, 0), (0, 2, -1), (0, 1, 1), (0, 3, 1), (0, 2, 1))
    assert chosen(data) == [1, 1, 3]


def test_only_the_asked_part_is_lived_through_and_all_before_it_is_known() -> None:
    data = dataset((0, 1, 1), (1, 5, 1), (0, 2, 1), (1, 6, 1), (0, 3, 1))
    assert chosen(data, 2, 4) == [2, 6]
    first = next(choices_of(data, 2, 4, most=10))
    assert first.query.history.positions.tolist() == [1]
    assert first.query.live is not None
    assert first.query.live.totals()[[1, 5, 2]].tolist() == [2, 2, 0]


def test_the_history_is_the_latest_state_of_what_the_user_met_oldest_first() -> None:
    data = dataset((0, 1, 1), (0, 2, 1), (1, 9, 1), (0, 1, -1), (0, 4, 1))
    *_, last = choices_of(data, 0, 5, most=10)
    history = last.query.history
    assert last.chosen == 4
    assert history.positions.tolist() == [2, 1]
    assert history.signs.tolist() == [1, -1]
    assert history.timestamps.tolist() == [NOW + 3_600, NOW + 3 * 3_600]
    assert last.query.at == NOW + 4 * 3_600


def test_the_oldest_of_a_long_history_is_left_out_but_stays_excluded() -> None:
    n = LONGEST_HISTORY + 5
    items = np.arange(n + 1, dtype=np.int32)
    data = Dataset(
        Interactions(
            np.zeros(n + 1, np.int32), items, np.ones(n + 1, np.float32), np.ones(n + 1, np.int8),
            np.full(n + 1, np.nan, np.float32), NOW + items.astype(np.float64),
        ),
        toy_items(),
        n_users=1,
    )  # fmt: skip
    choice = next(choices_of(data, n, n + 1, most=1))
    assert choice.query.history.positions.tolist() == list(range(5, n))
    assert choice.query.excluded.tolist() == list(range(n))


def recounted(choice: Choice, before: list[Done], user: int) -> None:
    """The choice's query against a plain recount of the events before it."""
    query, own = choice.query, [event for event in before if event.user == user]
    assert choice.chosen not in query.excluded
    assert query.history.positions.tolist() == list(latest(own, by_user=user))[::-1]
    assert sorted(query.excluded.tolist()) == sorted({event.item for event in own})
    live = query.live
    assert live is not None
    assert live.newest == max((event.time for event in before), default=-np.inf)
    for item in (choice.chosen, 3):
        expected = counts(before, item, query.at) if before else [0.0] * len(HALF_LIVES)
        np.testing.assert_allclose(live.counts(query.at)[:, item], expected, rtol=1e-5, atol=1e-9)


def test_every_choice_of_the_toy_data_knows_what_came_before_and_nothing_else() -> None:
    data = toy_dataset()
    events = data.interactions
    done = [
        Done(int(user), int(item), 2.0, float(time))
        for user, item, time in zip(events.users, events.items, events.timestamps, strict=True)
    ]
    n = 0
    for index, choice in enumerate(choices_of(data, 0, len(done), most=len(done))):
        assert choice.chosen == done[index].item
        if index % 20 == 0:
            recounted(choice, done[:index], done[index].user)
            n += 1
    assert (index + 1, n) == (len(done), len(done) // 20)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 559, 560, 10_000])
def test_at_most_so_many_from_the_first_to_the_last_evenly_spread(most: int) -> None:
    data = toy_dataset()
    times = [choice.query.at for choice in choices_of(data, 0, 560, most=most)]
    assert len(times) == min(most, 560)
    assert times == sorted(set(times))
    if most > 1:
        assert (times[0], times[-1]) == (data.interactions.timestamps[0], data.ends_at)
        places = np.searchsorted(data.interactions.timestamps, times)
        assert np.ptp(np.diff(places)) <= 1


def test_the_live_state_ends_where_the_dataset_ends() -> None:
    data = toy_dataset()
    state = live_state_of(data)
    assert len(state) == data.n_items
    assert state.newest == data.ends_at
    np.testing.assert_allclose(state.totals(), 2 * np.bincount(data.interactions.items, minlength=data.n_items))


def test_what_was_disliked_counts_less_and_not_below_nothing() -> None:
    assert live_state_of(dataset((0, 1, 1), (0, 2, -0.4), (0, 3, -1.5))).totals()[[1, 2, 3]] == pytest.approx(
        [2, 0.6, 0]
    )


def test_a_dataset_of_nothing() -> None:
    data = toy_dataset()
    empty = data.with_interactions(data.interactions.take(slice(0, 0)))
    assert list(choices_of(empty, 0, 0, most=10)) == []
    assert live_state_of(empty).newest == -np.inf
    assert live_state_of(empty).counts(NOW + DAY).shape == (len(HALF_LIVES), data.n_items)
