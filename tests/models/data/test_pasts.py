"""What a user had heard before a session."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.data.pasts import LONGEST_PAST, Pasts
from models.data.sessions import Sessions, split_newest
from tests.next_track_toys import sessions_of


def of_users(users: list[int], *tracks: list[int], n_items: int = 40) -> Sessions:
    return replace(sessions_of(*tracks, n_items=n_items), users=np.array(users, np.int32))


def before(earlier: Sessions, following: Sessions, session: int) -> list[int]:
    pasts = Pasts.between(earlier, following)
    assert pasts is not None
    return pasts.before(session)[0].tolist()


def test_it_is_the_users_own_and_from_before() -> None:
    whole = of_users([7, 3, 7, 3, 7], [1, 2], [3], [4], [5, 6], [8])
    earlier, following = whole.take(slice(0, 2)), whole.take(slice(2, 5))
    assert [before(earlier, following, nth) for nth in range(3)] == [[1, 2], [3], [1, 2, 4]]


def test_of_a_track_heard_twice_the_last_time_counts() -> None:
    whole = replace(of_users([1, 1, 1], [1, 2], [1, 3], [4]), fractions=np.array([0.1, 0.2, 0.9, 0.3, 1.0], np.float32))
    pasts = Pasts.between(*split_newest(whole, 1 / 3))
    assert pasts is not None
    tracks, fractions = pasts.before(0)
    assert tracks.tolist() == [2, 1, 3]
    np.testing.assert_allclose(fractions, [0.2, 0.9, 0.3])


def test_a_new_user_has_none_and_a_long_past_is_cut() -> None:
    long = of_users([1, 2, 1], list(range(LONGEST_PAST + 5)), [0], [1], n_items=LONGEST_PAST + 5)
    earlier, following = long.take(slice(0, 1)), long.take(slice(1, 3))
    assert before(earlier, following, 0) == []
    assert before(earlier, following, 1) == list(range(5, LONGEST_PAST + 5))


def test_without_users_there_is_none() -> None:
    assert Pasts.between(*split_newest(sessions_of([1], [2]), 0.5)) is None
