"""What a set of events adds to the live state, and takes back: a user counts once a day for an item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int32]
Masses = NDArray[np.float64]
Times = NDArray[np.float64]

DAY_SECONDS = 86_400


def _no_rows() -> Rows:
    return np.empty(0, np.int32)


def _no_numbers() -> NDArray[np.float64]:
    return np.empty(0, np.float64)


@dataclass(frozen=True, slots=True)
class Changes:
    """What `LiveState.fold` takes in one go.

    counted_items, counted_masses, counted_at:  int32[k], float64[k], unix seconds; a negative mass takes back
    visit_users, visit_items, visit_at:         int32[m], int32[m], unix seconds
    forgotten:  int32[f], users who are gone with all they did, and do not come back under this number
    refilled:   per item, its visitors and their latest times: of items where others were cut off the list that a
                forgotten user stood in. As they are after the visits.
    """

    counted_items: Rows = field(default_factory=_no_rows)
    counted_masses: Masses = field(default_factory=_no_numbers)
    counted_at: Times = field(default_factory=_no_numbers)
    visit_users: Rows = field(default_factory=_no_rows)
    visit_items: Rows = field(default_factory=_no_rows)
    visit_at: Times = field(default_factory=_no_numbers)
    forgotten: Rows = field(default_factory=_no_rows)
    refilled: Mapping[int, tuple[Rows, Times]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Events:
    """Events of positive mass, in any order.

    users, items: int32[n]; masses: float64[n], above 0; timestamps: float64[n], unix seconds
    before, after: bool[n]: whether the event was there before the changes, and is there after them
    """

    users: Rows
    items: Rows
    masses: Masses
    timestamps: Times
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]


def changes_between(events: Events) -> Changes:
    """From the counts before to those after, given all events of each (user, item, UTC day) in which any differs.

    A day counts at its earliest event's time with its largest mass. Events that went are taken out of the counts;
    who is to be forgotten is for the caller to say.
    """
    order, day = _by_day(events)
    mass_before, at_before = _counted(events, order, day, events.before)
    mass_after, at_after = _counted(events, order, day, events.after)
    items = events.items[order[_firsts(day)]]
    differs = (mass_before != mass_after) | ((at_before != at_after) & (mass_after > 0))
    gone, come = differs & (mass_before > 0), differs & (mass_after > 0)
    fresh = events.after & ~events.before
    return Changes(
        counted_items=np.concatenate((items[gone], items[come])),
        counted_masses=np.concatenate((-mass_before[gone], mass_after[come])),
        counted_at=np.concatenate((at_before[gone], at_after[come])),
        visit_users=events.users[fresh],
        visit_items=events.items[fresh],
        visit_at=events.timestamps[fresh],
    )


def _by_day(events: Events) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order in which events of one user, item and day stand together, and the number of each one's group."""
    day = np.floor(events.timestamps / DAY_SECONDS)
    order = np.lexsort((day, events.items, events.users))
    keys = (events.users[order], events.items[order], day[order])
    starts = np.zeros(len(order), np.bool_)
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    return order, np.cumsum(starts)


def _firsts(group: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.diff(group, prepend=-1))


def _counted(
    events: Events, order: NDArray[np.int64], group: NDArray[np.int64], there: NDArray[np.bool_]
) -> tuple[Masses, Times]:
    """Per group its largest mass, 0 without events, and its earliest time, inf without."""
    firsts = _firsts(group)
    if not len(firsts):
        return _no_numbers(), _no_numbers()
    here = there[order]
    masses = np.where(here, events.masses[order], 0.0)
    times = np.where(here, events.timestamps[order], np.inf)
    return np.maximum.reduceat(masses, firsts), np.minimum.reduceat(times, firsts)


class DayLedger:
    """Turns plain events, in time order, into Changes: remembers what the current UTC day holds."""

    def __init__(self) -> None:
        self._day = -np.inf
        self._held: dict[tuple[int, int], tuple[float, float]] = {}

    def changes(self, users: Rows, items: Rows, masses: Masses, timestamps: Times) -> Changes:
        """The next events: one, or many. Those without mass leave no trace.

        users, items: int32[n]; masses: float64[n], 0 or more; timestamps: float64[n], unix seconds. Within a day any
        order does; ValueError for an event of a day before one that was seen.
        """
        counted: list[tuple[int, float, float]] = []
        for user, item, mass, time in zip(
            users.tolist(), items.tolist(), masses.tolist(), timestamps.tolist(), strict=True
        ):
            if mass > 0:
                self._turn_to(time)
                counted += self._counted(user, item, mass, time)
        here = masses > 0
        return Changes(
            counted_items=np.array([item for item, _, _ in counted], np.int32),
            counted_masses=np.array([mass for _, mass, _ in counted], np.float64),
            counted_at=np.array([time for _, _, time in counted], np.float64),
            visit_users=users[here],
            visit_items=items[here],
            visit_at=timestamps[here],
        )

    def _turn_to(self, time: float) -> None:
        day = time // DAY_SECONDS
        if day < self._day:
            raise ValueError(f"an event at {time} came after one of a later day: give events in time order")
        if day > self._day:
            self._day = day
            self._held.clear()

    def _counted(self, user: int, item: int, mass: float, time: float) -> list[tuple[int, float, float]]:
        held = self._held.get((user, item))
        if held is None:
            self._held[user, item] = mass, time
            return [(item, mass, time)]
        now = max(mass, held[0]), min(time, held[1])
        if now == held:
            return []
        self._held[user, item] = now
        return [(item, -held[0], held[1]), (item, now[0], now[1])]
