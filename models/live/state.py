"""The live state: what everybody does now, folded in event by event, asked by many threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Counted, Indices, Leading, Positions, Scores
from models.live.changes import Changes, DayLedger
from models.live.counters import HALF_LIVES, DecayedCounters
from models.live.leaders import Leaders
from models.live.recency import ONE_BY_ONE
from models.live.trails import Trails

__all__ = ["Changes", "DayLedger", "LiveState"]


class LiveState:
    """Decayed counters and trails together; a LiveSignals where an item's row is its position.

    Every answer is a function of the set of events alone. Safe for threads: one folds, any number ask.
    """

    def __init__(self, *, half_lives: tuple[float, ...] = HALF_LIVES, n_items: int = 0) -> None:
        """n_items: counted from the start; grows with the highest item seen."""
        self._lock = threading.Lock()
        self._counters = DecayedCounters(half_lives, n_items)
        self._trails = Trails()
        self._leaders = Leaders()
        self._version = 0
        # As of which version, and what it was then.
        self._newest = 0, -np.inf

    def __len__(self) -> int:
        """Items that are counted: one more than the highest seen."""
        return len(self._counters)

    @property
    def half_lives(self) -> tuple[float, ...]:
        """Seconds, ascending."""
        return self._counters.half_lives

    @property
    def newest(self) -> float:
        """Unix seconds of the newest event counted, -inf without any."""
        with self._lock:
            if self._newest[0] != self._version:
                self._newest = self._version, float(self._trails.last_at.max(initial=-np.inf))
            return self._newest[1]

    @property
    def version(self) -> int:
        """Another number whenever an answer may be another."""
        return self._version

    @property
    def as_of(self) -> float:
        """Unix seconds: the earliest time that `counts` answers for. `newest`, or that of an event since taken back."""
        return self._counters.newest

    def fold(self, changes: Changes) -> None:
        """Takes the changes in; who asks meanwhile finds all of them or none. From one thread at a time."""
        visits = changes.visit_users, changes.visit_items, changes.visit_at
        # The long part, unless something else has to happen before: then all of it while others wait.
        is_plain = not len(changes.forgotten) and len(changes.visit_users) > ONE_BY_ONE
        after = self._trails.after(*visits) if is_plain else None
        with self._lock:
            self._version += 1
            self._counters.add(changes.counted_items, changes.counted_masses, changes.counted_at)
            self._leaders.counted(changes.counted_items, changes.counted_masses)
            if after is not None:
                self._trails.write(after)
                return
            if len(changes.forgotten):
                self._trails.forget(changes.forgotten)
            self._trails.visit(*visits)
            for item, (users, timestamps) in changes.refilled.items():
                self._trails.refill(item, users, timestamps)

    def become(self, other: LiveState) -> None:
        """Takes over what another state holds, which must not be used any more."""
        with self._lock:
            self._version += 1
            self._counters, self._trails, self._leaders = other._counters, other._trails, other._leaders

    def counts(self, at: float) -> Scores:
        """float32[H, n]: masses decayed as of `at` in unix seconds; of `as_of`, where that is later."""
        with self._lock:
            return self._counters.at(at)

    def totals(self) -> Scores:
        """float32[n]: masses of all time."""
        with self._lock:
            return self._counters.totals

    def counted(self, positions: Indices, at: float, n: int) -> Counted:
        """See `LiveSignals.counted`."""
        with self._lock:
            counts, totals = self._counters.of(positions, at)
            masses, total = self._counters.masses(at)
            if n < len(self._counters):
                beyond, beyond_totals = self._counters.of(np.arange(n, len(self._counters)), at)
                masses, total = masses - beyond.sum(axis=1), total - float(beyond_totals.sum())
        return Counted(counts, totals, np.maximum(masses, 0), max(total, 0.0))

    def leading(self) -> Leading:
        """See `LiveSignals.leading`."""
        with self._lock:
            return self._leaders.of(self._counters)

    def last_at(self) -> NDArray[np.float64]:
        """float64[n]: unix seconds of each item's newest event, -inf where none."""
        with self._lock:
            last_at = self._trails.last_at
            return np.pad(last_at, (0, len(self._counters) - len(last_at)), constant_values=-np.inf)

    def covisited(self, position: int) -> tuple[Positions, Scores]:
        """Items that the item's latest users visited of late, ascending, and the share of those users, 0–1."""
        with self._lock:
            return self._trails.covisited(position)

    def covisited_each(self, positions: Sequence[int]) -> list[tuple[Positions, Scores]]:
        """See `LiveSignals.covisited_each`."""
        with self._lock:
            return [self._trails.covisited(position) for position in positions]

    def nearness(self, positions: Positions, among: Positions) -> Scores:
        """See `LiveSignals.nearness`."""
        with self._lock:
            return self._trails.nearness(positions, among)

    def trail(self, user: int) -> Positions:
        """int32[≤ 10]: the user's latest items, newest first."""
        with self._lock:
            return self._trails.trail(user)

    def visitors(self, item: int) -> NDArray[np.int32]:
        """int32[≤ 100]: the item's latest users, newest first."""
        with self._lock:
            return self._trails.visitors(item)

    def losing(self, users: NDArray[np.int32]) -> NDArray[np.int64]:
        """int64[k]: items whose visitors have to be given (`Changes.refilled`) when these users are forgotten."""
        with self._lock:
            return self._trails.losing(users)

    def holding(self, users: NDArray[np.int32]) -> NDArray[np.int64]:
        """int64[k]: items among whose visitors any of these users is."""
        with self._lock:
            return self._trails.holding(users)

    def extent(self) -> tuple[int, int]:
        """One more than the highest item, and than the highest user."""
        with self._lock:
            return len(self._counters), self._trails.n_users

    def item_parts(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """What is known of items first … last-1, as arrays for `restore_items`."""
        with self._lock:
            visitors = self._trails.item_parts(first, last)
            return self._counters.parts(first, last) | {f"visitors.{name}": part for name, part in visitors.items()}

    def user_parts(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """What is known of users first … last-1, as arrays for `restore_users`."""
        with self._lock:
            return self._trails.user_parts(first, last)

    def restore_items(self, first: int, parts: Mapping[str, NDArray[Any]]) -> None:
        """Sets the items from `first` on to what `item_parts` gave."""
        visitors = {name.removeprefix("visitors."): parts[name] for name in parts if name.startswith("visitors.")}
        with self._lock:
            self._version += 1
            self._counters.restore(first, parts)
            self._leaders = Leaders()
            self._trails.restore_items(first, visitors)

    def restore_users(self, first: int, parts: Mapping[str, NDArray[Any]]) -> None:
        """Sets the users from `first` on to what `user_parts` gave."""
        with self._lock:
            self._version += 1
            self._trails.restore_users(first, parts)

    def parts(self) -> dict[str, NDArray[Any]]:
        """All of it as plain arrays, for `from_parts`."""
        n_items, n_users = self.extent()
        items, users = self.item_parts(0, n_items), self.user_parts(0, n_users)
        named = {f"items.{name}": part for name, part in items.items()}
        return named | {f"users.{name}": part for name, part in users.items()}

    @classmethod
    def from_parts(cls, parts: Mapping[str, NDArray[Any]], *, half_lives: tuple[float, ...] = HALF_LIVES) -> Self:
        """The state that `parts` was taken of. half_lives: those it was made with."""
        state = cls(half_lives=half_lives)
        state.restore_items(0, _below("items.", parts))
        state.restore_users(0, _below("users.", parts))
        return state


def _below(prefix: str, parts: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}
