"""The live state counted anew from a list of events, as slowly and plainly as it can be said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.live.changes import Changes, Events, changes_between
from models.live.counters import HALF_LIVES
from models.live.state import LiveState

DAY = 86_400


class Done(NamedTuple):
    user: int
    item: int
    mass: float
    time: float

    @property
    def day(self) -> tuple[int, int, int]:
        return self.user, self.item, int(self.time // DAY)


def counted(events: Iterable[Done]) -> list[tuple[int, float, float]]:
    """(item, mass, time) of each user, item and day."""
    days: dict[tuple[int, int, int], list[Done]] = defaultdict(list)
    for event in events:
        days[event.day].append(event)
    return [
        (day[1], max(event.mass for event in held), min(event.time for event in held)) for day, held in days.items()
    ]


def counts(events: Iterable[Done], item: int, at: float) -> list[float]:
    of_item = [(mass, time) for each, mass, time in counted(events) if each == item]
    return [sum(mass * 2 ** ((time - at) / life) for mass, time in of_item) for life in HALF_LIVES]


def latest(events: Iterable[Done], *, of_item: int | None = None, by_user: int | None = None) -> dict[int, float]:
    """The latest time of each user of an item, or of each item of a user, in the order of lists."""
    times: dict[int, float] = {}
    for event in events:
        if of_item is not None and event.item == of_item:
            times[event.user] = max(event.time, times.get(event.user, event.time))
        if by_user is not None and event.user == by_user:
            times[event.item] = max(event.time, times.get(event.item, event.time))
    return dict(sorted(times.items(), key=lambda found: (-found[1], found[0])))


def arrays(events: list[Done], before: set[int], after: set[int]) -> Events:
    """before, after: indices of the events that are there."""
    return Events(
        users=np.array([event.user for event in events], np.int32),
        items=np.array([event.item for event in events], np.int32),
        masses=np.array([event.mass for event in events], np.float64),
        timestamps=np.array([event.time for event in events], np.float64),
        before=np.array([index in before for index in range(len(events))], np.bool_),
        after=np.array([index in after for index in range(len(events))], np.bool_),
    )


def added(state: LiveState, held: list[Done], new: list[Done]) -> None:
    """Folds new events into a state that counts `held`."""
    days = {event.day for event in new}
    same = [event for event in held if event.day in days]
    everything = same + new
    state.fold(changes_between(arrays(everything, set(range(len(same))), set(range(len(everything))))))


def erased(state: LiveState, held: list[Done], users: set[int]) -> list[Done]:
    """Folds the users' erasure into a state that counts `held`; what is left."""
    gone, left = [event for event in held if event.user in users], [event for event in held if event.user not in users]
    taken_back = changes_between(arrays(gone, set(range(len(gone))), set()))
    forgotten = np.array(sorted(users), np.int32)
    refilled = {}
    for item in state.losing(forgotten).tolist():
        visitors = latest(left, of_item=item)
        refilled[item] = np.array(list(visitors), np.int32), np.array(list(visitors.values()), np.float64)
    state.fold(
        Changes(
            counted_items=taken_back.counted_items,
            counted_masses=taken_back.counted_masses,
            counted_at=taken_back.counted_at,
            forgotten=forgotten,
            refilled=refilled,
        )
    )
    return left


def assert_counts(state: LiveState, events: list[Done]) -> None:
    """That the state is what these events make, sums to a part in a billion, lists to the last place."""
    newest = max((event.time for event in events), default=0.0)
    n = len(state)
    for at in (newest, newest + 3_600, newest + 30 * DAY):
        expected = np.array([counts(events, item, max(at, state.as_of)) for item in range(n)])
        expected = expected.reshape(n, len(HALF_LIVES)).T
        np.testing.assert_allclose(state.counts(at), expected, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(_exact(state, at), expected, rtol=1e-9, atol=1e-9)
    totals = np.zeros(n)
    for item, mass, _ in counted(events):
        totals[item] += mass
    np.testing.assert_allclose(state.totals(), totals, rtol=1e-6, atol=1e-9)
    assert state.newest == (newest if events else -np.inf)
    for item in range(n):
        visitors = latest(events, of_item=item)
        assert state.visitors(item).tolist() == list(visitors)[:100]
        assert state.last_at()[item] == max(visitors.values(), default=-np.inf)
        assert_covisited(state, events, item, list(visitors)[:100])


def assert_covisited(state: LiveState, events: list[Done], item: int, visitors: list[int]) -> None:
    together: dict[int, int] = defaultdict(int)
    for user in visitors:
        trail = list(latest(events, by_user=user))[:10]
        assert state.trail(user).tolist() == trail
        for other in trail:
            together[other] += other != item
    items, shares = state.covisited(item)
    expected = {other: count / len(visitors) for other, count in sorted(together.items()) if count}
    assert items.tolist() == list(expected)
    np.testing.assert_allclose(shares, list(expected.values()), rtol=1e-6)
    among = np.random.default_rng(item).permutation(len(state) + 2).astype(np.int32)
    near = state.nearness(np.array([item], np.int32), among)
    assert dict(zip(among[near > 0].tolist(), near[near > 0].tolist(), strict=True)) == dict(
        zip(items.tolist(), shares.tolist(), strict=True)
    )


def _exact(state: LiveState, at: float) -> NDArray[np.float64]:
    """The counts before they are rounded to float32."""
    parts = state.parts()
    exponents = (parts["items.landmarks"] - max(at, state.as_of)) / np.array(HALF_LIVES)
    with np.errstate(under="ignore"):
        exact: NDArray[np.float64] = parts["items.sums"] * np.exp2(np.nan_to_num(exponents))[:, None]
    return exact
