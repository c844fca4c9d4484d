from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.contracts import LiveSignals
from models.live.changes import DayLedger, changes_between
from models.live.counters import DAY, HALF_LIVES, HOUR
from models.live.state import LiveState
from tests.models.live.recount import Done, added, arrays, assert_counts, erased

START = 1_700_000_000.0
MASSES = (0.2, 1.0, 1.3, 2.5)


def events_of(seed: int, n: int, *, users: int, items: int, days: float) -> list[Done]:
    draw = np.random.default_rng(seed)
    # Whole seconds, and few of them: so there are ties.
    times = START + np.floor(draw.random(n) * days * DAY / 600) * 600
    return [
        Done(int(user), int(item), float(mass), float(time))
        for user, item, mass, time in zip(
            draw.integers(0, users, n), draw.integers(0, items, n), draw.choice(MASSES, n), times, strict=True
        )
    ]


def restored(state: LiveState) -> LiveState:
    """Through a checkpoint, items and users in pieces."""
    again = LiveState()
    n_items, n_users = state.extent()
    for first in range(0, n_items, 3):
        again.restore_items(first, state.item_parts(first, first + 3))
    for first in range(0, n_users, 7):
        again.restore_users(first, state.user_parts(first, first + 7))
    return again


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32), n=st.integers(0, 120), sizes=st.lists(st.integers(1, 40), min_size=1),
    days=st.sampled_from([0.3, 5, 8_000]), checkpoint=st.booleans(), erasing=st.booleans(),
)  # fmt: skip
def test_any_order_any_batches_any_restart_equal_a_recount(
    *, seed: int, n: int, sizes: list[int], days: float, checkpoint: bool, erasing: bool
) -> None:
    events = events_of(seed, n, users=12, items=15, days=days)
    draw = np.random.default_rng(seed + 1)
    state, held = LiveState(), list[Done]()
    while len(held) < len(events):
        batch = events[len(held) : len(held) + sizes[len(held) % len(sizes)]]
        added(state, held, batch)
        held = held + batch
        state = restored(state) if checkpoint else state
    if erasing:
        held = erased(state, held, set(draw.integers(0, 12, 3).tolist()))
        late = [event for event in events_of(seed + 2, 30, users=20, items=15, days=days) if event.user > 11]
        added(state, held, late)
        held = held + late
    assert_counts(state, held)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), batch=st.sampled_from([7, 30, 900]))
def test_full_lists_are_filled_up_again_when_users_are_erased(seed: int, batch: int) -> None:
    events = events_of(seed, 900, users=160, items=4, days=3)
    state, held = LiveState(), list[Done]()
    for first in range(0, 600, batch):
        new = events[first : min(first + batch, 600)]
        added(state, held, new)
        held = held + new
    assert min(len(state.visitors(item)) for item in range(4)) > 60
    held = erased(state, held, set(range(0, 160, 3)))
    rest = [event for event in events[600:] if event.user % 3]
    added(state, held, rest)
    assert_counts(restored(state), held + rest)


def test_a_user_counts_once_a_day_for_an_item_with_the_largest_mass_at_the_earliest_time() -> None:
    noon = START - START % DAY + 12 * HOUR
    state = LiveState()
    first, stronger, earlier = Done(0, 0, 1.0, noon), Done(0, 0, 2.5, noon + HOUR), Done(0, 0, 0.2, noon - HOUR)
    held: list[Done] = []
    for event, mass, since in ((first, 1.0, noon), (stronger, 2.5, noon), (earlier, 2.5, noon - HOUR)):
        added(state, held, [event])
        held.append(event)
        assert state.totals()[0] == pytest.approx(mass)
        assert state.counts(noon + HOUR)[0, 0] == pytest.approx(mass / 2 ** ((noon + HOUR - since) / HOUR))
    added(state, held, [Done(0, 0, 1.0, noon + 12 * HOUR)])
    assert state.totals()[0] == pytest.approx(3.5)


def test_taking_everything_back_leaves_nothing_not_even_a_rest_of_rounding() -> None:
    events = events_of(3, 200, users=20, items=5, days=40)
    state = LiveState()
    added(state, [], events)
    erased(state, events, set(range(20)))
    assert not state.counts(START + 100 * DAY).any()
    assert not state.totals().any()
    assert state.newest == -np.inf
    assert not any(len(state.visitors(item)) or len(state.covisited(item)[0]) for item in range(5))


@pytest.mark.parametrize("size", [1, 500])
def test_twenty_two_years_at_a_half_life_of_an_hour(size: int) -> None:
    """192,720 half-lives: float64 ends at 1,023."""
    events = sorted(events_of(5, 2_000, users=40, items=12, days=22 * 365), key=lambda event: event.time)
    state, ledger = LiveState(), DayLedger()
    with np.errstate(all="raise"):
        for first in range(0, len(events), size):
            batch = arrays(events[first : first + size], set(), set())
            state.fold(ledger.changes(batch.users, batch.items, batch.masses, batch.timestamps))
            assert np.isfinite(state.counts(state.newest)).all()
        assert_counts(state, events)


def test_the_oldest_event_of_a_stream_may_come_last() -> None:
    events = events_of(5, 300, users=40, items=12, days=22 * 365)
    state = LiveState()
    with np.errstate(all="raise"):
        for index, event in enumerate(sorted(events, key=lambda event: -event.time)):
            added(state, sorted(events, key=lambda event: -event.time)[:index], [event])
    assert_counts(state, events)


def test_the_first_click_after_three_years_of_silence() -> None:
    events = events_of(8, 500, users=50, items=10, days=60)
    state = LiveState()
    added(state, [], events)
    totals = state.totals()
    click = Done(1, 3, 1.0, START + 3 * 365 * DAY)
    added(state, events, [click])
    counts = state.counts(click.time)
    assert np.isfinite(counts).all()
    assert (counts[:, 3] >= 1).all()
    # Of an hour's half-life nothing else is left; of 64 days' a thousandth, in the order of before.
    assert (counts[0, np.arange(10) != 3] == 0).all()
    assert counts[-1].sum() < 1.01
    assert (counts[-1, np.arange(10) != 3] > 0).all()
    assert state.totals()[3] == pytest.approx(totals[3] + 1)


def test_asked_for_earlier_than_the_newest_event_the_counts_are_as_of_that() -> None:
    state = LiveState()
    added(state, [], [Done(0, 0, 1.0, START)])
    for at in (START - 1, START - 22 * 365 * DAY):
        assert state.counts(at)[:, 0].tolist() == [1.0] * len(HALF_LIVES)


def test_an_empty_state_answers() -> None:
    state: LiveSignals = LiveState(n_items=3)
    assert state.newest == -np.inf
    assert state.counts(START).tolist() == [[0.0] * 3] * len(HALF_LIVES)
    assert state.totals().tolist() == [0.0] * 3
    for item in (0, 2, 999):
        items, shares = state.covisited(item)
        assert (len(items), len(shares)) == (0, 0)
    assert LiveState.from_parts(LiveState().parts()).extent() == (0, 0)


def test_ten_items_per_user_and_a_hundred_users_per_item_are_kept() -> None:
    state = LiveState()
    events = [Done(user, 0, 1.0, START + user) for user in range(130)]
    events += [Done(129, item, 1.0, START + 1_000 + item) for item in range(1, 15)]
    added(state, [], events)
    assert state.visitors(0).tolist() == list(range(129, 29, -1))
    assert state.trail(129).tolist() == list(range(14, 4, -1))
    items, shares = state.covisited(0)
    assert items.tolist() == list(range(5, 15))
    assert shares == pytest.approx([0.01] * 10)


def test_of_several_items_the_nearest_one_counts() -> None:
    state = LiveState()
    events = [Done(1, 0, 1.0, START), Done(2, 0, 1.0, START), Done(1, 7, 1.0, START + 1), Done(3, 5, 1.0, START)]
    events += [Done(3, 7, 1.0, START + 1), Done(2, 9, 1.0, START + 1), Done(2, 5, 1.0, START - 1)]
    added(state, [], events)
    skipped, among = np.array([0, 5, 99], np.int32), np.array([9, 5, 7, 0, 98], np.int32)
    # Half of those of 0 were at 7, 9 and 5; one of the two of 5 at 7, one at 0 and 9. No item goes with itself.
    assert state.nearness(skipped, among).tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    assert state.nearness(skipped[:1], among).tolist() == [0.5, 0.5, 0.5, 0.0, 0.0]
    assert state.nearness(skipped[:0], among).tolist() == [0.0] * 5
    assert state.nearness(skipped, among[:0]).tolist() == []


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 80), size=st.integers(1, 50))
def test_the_ledger_of_a_day_says_what_a_comparison_of_all_events_says(seed: int, n: int, size: int) -> None:
    events = sorted(events_of(seed, n, users=3, items=3, days=3), key=lambda event: event.time)
    state, ledger = LiveState(), DayLedger()
    for first in range(0, n, size):
        batch = arrays(events[first : first + size], set(), set())
        state.fold(ledger.changes(batch.users, batch.items, batch.masses, batch.timestamps))
    assert_counts(state, events)


def test_the_ledger_refuses_an_event_of_a_day_that_is_over() -> None:
    ledger = DayLedger()

    def give(time: float, mass: float = 1.0) -> None:
        one = np.zeros(1, np.int32)
        ledger.changes(one, one, np.array([mass]), np.array([time]))

    give(START)
    give(START - DAY, mass=0.0)
    with pytest.raises(ValueError, match="time order"):
        give(START - DAY)


def test_events_without_mass_leave_no_trace() -> None:
    changes = DayLedger().changes(
        np.array([0, 1], np.int32), np.array([0, 1], np.int32), np.array([0.0, 1.0]), np.array([START, START])
    )
    assert (changes.counted_items.tolist(), changes.visit_users.tolist()) == ([1], [1])


def test_nothing_changes_where_nothing_differs() -> None:
    events = events_of(2, 50, users=5, items=5, days=2)
    everything = set(range(50))
    changes = changes_between(arrays(events, everything, everything))
    assert not len(changes.counted_items)
    assert not len(changes.visit_users)


def test_many_may_ask_while_one_folds() -> None:
    state, failures = LiveState(), list[Exception]()
    events = events_of(1, 3_000, users=300, items=40, days=2)
    over = threading.Event()

    def ask(question: Callable[[], object]) -> None:
        while not over.is_set():
            try:
                question()
            except Exception as error:  # noqa: BLE001 - whatever a reader meets is what this test is about
                failures.append(error)

    def consistent() -> None:
        items, shares = state.covisited(7)
        assert len(items) == len(shares)
        assert (shares <= 1).all()

    questions = (lambda: state.counts(START + 9 * DAY), consistent, state.parts)
    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for first in range(0, 3_000, 100):
        added(state, [], [event._replace(user=event.user + first) for event in events[first : first + 100]])
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
