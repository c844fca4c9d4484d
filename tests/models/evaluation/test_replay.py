"""A log as a test: which events are cases, where it is cut, and what counters that learn from it would have shown."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.replay import (
    ALL_TIME,
    BASELINES,
    DAY,
    HALF_LIVES,
    NEWEST_PUBLISHED,
    NEWEST_SEEN,
    WINDOWS,
    Baselines,
    Feed,
    Log,
    baseline_ranks,
    hits_at,
    ndcg_at,
)

UNKNOWN = float("nan")


def log_of(*events: tuple[int, int, float]) -> Log:
    """From (user, item, days)."""
    users, items, days = zip(*events, strict=True)
    return Log(np.array(users, np.int32), np.array(items, np.int32), np.array(days, np.float64) * DAY)


def folded(n_items: int, *events: tuple[int, int, float], published: list[float] | None = None) -> Baselines:
    baselines = Baselines(n_items, np.array(published or [UNKNOWN] * n_items))
    for user, item, days in events:
        baselines.fold(user, item, days * DAY)
    return baselines


def rank(baselines: Baselines, name: str, *, user: int, item: int, days: float) -> int:
    return int(baselines.ranks(user, item, days * DAY)[BASELINES.index(name)])


def test_a_first_meeting_is_the_first_event_of_a_user_with_an_item() -> None:
    log = log_of((0, 0, 1), (0, 1, 2), (0, 0, 3), (1, 0, 4), (0, 1, 5), (1, 1, 6))

    assert log.first_meetings.tolist() == [True, True, False, True, False, True]


def test_the_cut_comes_right_after_the_share_of_first_meetings_whatever_their_times() -> None:
    # Five meetings among seven events, all at one moment: the fourth is the sixth event.
    log = log_of((0, 0, 1), (0, 0, 1), (0, 1, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1), (2, 0, 1))

    assert log.cut(0.8) == 6
    assert log.first_meetings[log.cut(0.8) :].sum() == 1


def test_a_share_that_leaves_nothing_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match="2 of 2"):
        log_of((0, 0, 1), (0, 1, 2)).cut(0.9)
    with pytest.raises(ValueError, match="0 of 0"):
        Log(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0)).cut(0.8)


def test_without_a_lag_everything_before_is_known_and_with_one_as_much_less() -> None:
    assert [Feed.behind(0).known(event) for event in range(4)] == [0, 1, 2, 3]
    assert [Feed.behind(3).known(event) for event in (2, 3, 4, 10)] == [0, 0, 1, 7]
    feed = Feed.behind(300)
    assert feed.batch == 30
    assert [feed.known(event) for event in (0, 300, 329, 330, 1000)] == [0, 0, 0, 30, 690]


def test_counts_of_all_time_and_of_a_window_part_when_the_window_has_passed() -> None:
    baselines = folded(3, (1, 0, 0), (2, 0, 0), (3, 0, 0), (1, 1, 5), (2, 1, 5))

    assert rank(baselines, ALL_TIME, user=9, item=1, days=5) == 2
    assert rank(baselines, "windowed popularity, 3 d", user=9, item=1, days=5) == 1
    assert rank(baselines, "windowed popularity, 7 d", user=9, item=1, days=5) == 2
    assert rank(baselines, "windowed popularity, 7 d", user=9, item=1, days=8) == 1


def test_a_window_ends_exactly_its_length_ago() -> None:
    baselines = folded(2, (1, 0, 0), (2, 0, 0), (3, 1, 0.5))

    assert rank(baselines, "windowed popularity, 1 d", user=9, item=1, days=1) == 2
    assert rank(baselines, "windowed popularity, 1 d", user=9, item=1, days=1 + 1e-6) == 1


def test_a_decay_halves_what_is_one_half_life_old() -> None:
    # Two events weigh as much as one that is a half-life younger.
    two_old_one_new = folded(2, (1, 0, 0), (2, 0, 0), (3, 1, 1.001))
    assert rank(two_old_one_new, "decayed popularity, 1 d", user=9, item=1, days=2) == 1
    two_less_old = folded(2, (1, 0, 0), (2, 0, 0), (3, 1, 0.999))
    assert rank(two_less_old, "decayed popularity, 1 d", user=9, item=1, days=2) == 2
    assert rank(two_less_old, "decayed popularity, 6 h", user=9, item=1, days=2) == 1


def test_who_comes_back_to_an_item_counts_once() -> None:
    baselines = folded(2, *((1, 0, day / 100) for day in range(50)), (1, 1, 0.6), (2, 1, 0.6))

    for name in (ALL_TIME, "decayed popularity, 1 d", "windowed popularity, 7 d"):
        assert rank(baselines, name, user=9, item=1, days=1) == 1


def test_what_the_user_has_met_is_not_in_the_way() -> None:
    baselines = folded(3, (1, 0, 0), (2, 0, 0), (7, 0, 0), (1, 1, 1))

    assert rank(baselines, ALL_TIME, user=8, item=1, days=1) == 2
    assert rank(baselines, ALL_TIME, user=7, item=1, days=1) == 1


def test_equals_go_by_all_time_then_by_position() -> None:
    baselines = folded(4, (1, 3, 0), (2, 2, 30), (3, 1, 30), (4, 1, 0))

    # In the last week items 1 and 2 were met once each; item 1 has one more of all time, item 3 one, item 0 none.
    ranks = [rank(baselines, "windowed popularity, 7 d", user=9, item=item, days=30) for item in range(4)]
    assert ranks == [4, 1, 2, 3]
    tied = folded(3)
    assert [rank(tied, ALL_TIME, user=9, item=item, days=0) for item in range(3)] == [1, 2, 3]


def test_newest_first_knows_an_item_by_its_first_event_or_from_its_publication_on() -> None:
    baselines = folded(3, (1, 0, 0), (1, 1, 1), (2, 0, 2), published=[UNKNOWN, UNKNOWN, 3 * DAY])

    for name in (NEWEST_SEEN, NEWEST_PUBLISHED):
        assert [rank(baselines, name, user=9, item=item, days=2) for item in range(3)] == [2, 1, 3]
    assert [rank(baselines, NEWEST_PUBLISHED, user=9, item=item, days=3) for item in range(3)] == [3, 2, 1]
    assert rank(baselines, NEWEST_SEEN, user=9, item=2, days=3) == 3


def test_a_stream_of_22_years_neither_overflows_nor_forgets_the_order() -> None:
    days = np.linspace(0, 22 * 365, 2_000)
    baselines = folded(3, *((user, user % 2, day) for user, day in enumerate(days.tolist())))

    ranks = baselines.ranks(-1, 1, float(days[-1]) * DAY)
    assert ranks[BASELINES.index("decayed popularity, 6 h")] == 1
    assert ranks[BASELINES.index("decayed popularity, 14 d")] == 1
    assert baselines.ranks(-1, 2, float(days[-1]) * DAY).tolist() == [3] * len(BASELINES)


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 40)), min_size=4, max_size=30)


@given(EVENTS, st.integers(0, 12), st.sampled_from([UNKNOWN, 5.0, 50.0]))
def test_ranks_are_those_of_a_recount_of_everything_known(
    events: list[tuple[int, int, int]], lag: int, published_on: float
) -> None:
    log = log_of(*sorted(events, key=lambda event: event[2]))
    first, cut, feed = log.first_meetings, 2, Feed.behind(lag)
    published = np.array([UNKNOWN, published_on * DAY, UNKNOWN, UNKNOWN, UNKNOWN])

    found = baseline_ranks(log, cut, feed=feed, published=published)

    cases = [event for event in range(cut, len(log)) if first[event]]
    for number, event in enumerate(cases):
        known = [e for e in range(cut + feed.known(event - cut)) if first[e]]
        for name in BASELINES:
            assert found[name][number] == recounted(log, known, event, name, published), (name, event)


def recounted(log: Log, known: list[int], event: int, name: str, published: np.ndarray) -> int:
    """The rank by definition: no running state, and ages instead of forward decay."""
    at, n = log.timestamps[event], len(published)
    ages = [(int(log.items[e]), (at - log.timestamps[e]) / DAY) for e in known]
    all_time = [sum(item == i for i, _ in ages) for item in range(n)]
    first_seen = [min((-age for i, age in ages if i == item), default=-math.inf) for item in range(n)]
    kind, _, span = name.partition(", ")
    scores: list[float]
    if kind == "decayed popularity":
        scores = [math.fsum(2 ** (-age / HALF_LIVES[span]) for i, age in ages if i == item) for item in range(n)]
    elif kind == "windowed popularity":
        scores = [sum(age <= WINDOWS[span] for i, age in ages if i == item) for item in range(n)]
    elif name == NEWEST_SEEN:
        scores = first_seen
    elif name == NEWEST_PUBLISHED:
        is_out = published <= at
        since = (published - at) / DAY
        scores = [float(since[i]) if is_out[i] else -math.inf if published[i] > at else first_seen[i] for i in range(n)]
    else:
        scores = [float(count) for count in all_time]
    met = {int(log.items[e]) for e in known if log.users[e] == log.users[event]}
    order = sorted(
        set(range(n)) - met | {int(log.items[event])}, key=lambda i: (-float(f"{scores[i]:.9e}"), -all_time[i], i)
    )
    return order.index(int(log.items[event])) + 1


def test_one_relevant_item_is_worth_less_the_further_down_it_stands() -> None:
    ranks = np.array([1, 2, 10, 11, 0], np.int32)

    assert hits_at(10, ranks).tolist() == [1, 1, 1, 0, 0]
    assert ndcg_at(10, ranks).tolist() == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(11), 0, 0])
