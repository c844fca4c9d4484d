"""Sessions: how they are cut, and which beginnings of them are asked about."""

from __future__ import annotations

import numpy as np

from models.data.dataset import Interactions
from models.data.sessions import sessions_of_users, split_newest
from tests.next_track_toys import sessions_of


def test_every_beginning_that_something_follows_is_a_prefix() -> None:
    prefixes = sessions_of([1, 2, 3], [4], [5, 6]).prefixes()
    asked = [(prefix.tracks.tolist(), prefix.target) for prefix in prefixes]
    assert asked == [([1], 2), ([1, 2], 3), ([5], 6)]
    assert prefixes.targets.tolist() == [2, 3, 6]


def test_what_was_broken_off_is_known_but_nobodys_choice() -> None:
    sessions = sessions_of([1, 2, 3], [4], [5, 6], fractions=[[1, 0.2, 0.9], [0.1], [np.nan, 0.5]])
    asked = [(prefix.tracks.tolist(), prefix.target) for prefix in sessions.listened_prefixes()]
    assert asked == [([1, 2], 3), ([5], 6)]
    listened = sessions.listened()
    assert (listened.tracks.tolist(), listened.bounds.tolist()) == ([1, 3, 5, 6], [0, 2, 4])


def test_leave_last_out_asks_once_a_session() -> None:
    asked = [(prefix.tracks.tolist(), prefix.target) for prefix in sessions_of([1, 2, 3], [4], [5, 6]).last_prefixes()]
    assert asked == [([1, 2], 3), ([5], 6)]


def test_the_newest_sessions_are_cut_off_whole() -> None:
    earlier, newest = split_newest(sessions_of([1, 2], [3], [4, 5, 6], [7, 8]), 0.5)
    assert earlier.tracks.tolist() == [1, 2, 3]
    assert newest.tracks.tolist() == [4, 5, 6, 7, 8]
    assert newest.bounds.tolist() == [0, 3, 5]


def test_a_sample_keeps_the_order_and_repeats_nothing() -> None:
    prefixes = sessions_of([1, 2, 3, 4], [5, 6, 7, 8]).prefixes()
    drawn = prefixes.sample(4, seed=0)
    assert len(drawn) == 4
    assert (np.diff(drawn.nexts) > 0).all()
    assert prefixes.sample(100, seed=0) is prefixes


def test_a_user_who_pauses_begins_another_session() -> None:
    """Sessions come in the order of their beginnings, whoever they belong to."""
    times = np.array([0, 10, 20, 30, 5_000, 5_010], np.float64)
    interactions = Interactions(
        users=np.array([1, 0, 1, 0, 1, 1], np.int32),
        items=np.array([10, 20, 11, 21, 12, 13], np.int32),
        weights=np.ones(6, np.float32),
        signs=np.ones(6, np.int8),
        values=np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], np.float32),
        timestamps=times,
    )
    sessions = sessions_of_users(interactions, 30, pause=1_800)
    assert sessions.tracks.tolist() == [10, 11, 20, 21, 12, 13]
    assert sessions.bounds.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(sessions.fractions, [0.1, 0.3, 0.2, 0.4, 0.5, 0.6])
    assert len(sessions_of_users(interactions, 30, pause=np.inf)) == 2


def test_nothing_heard_is_no_session() -> None:
    nothing = Interactions(
        np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int8),
        np.empty(0, np.float32), np.empty(0, np.float64),
    )  # fmt: skip
    sessions = sessions_of_users(nothing, 3, pause=60)
    assert len(sessions) == 0
    assert len(sessions.prefixes()) == 0
