"""For each of many keys the last few distinct others it met: an item's latest users, a user's latest items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Others = NDArray[np.int32]
Times = NDArray[np.float64]

NOBODY = -1
ONE_BY_ONE = 24
"""Up to so many meetings a loop beats the setting up of vectorised steps."""


class Lists(NamedTuple):
    """Some keys' lists: keys ascending, how long each is, and all of them one after the other."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int32]
    others: Others
    times: Times


class RecencyLists:
    """Per key the `depth` distinct others of the latest times; of equal times the smaller other stays.

    The latest time of a pair counts, so the lists are the same in whatever order meetings come, and however they are
    batched. Lists, newest first, lie in rooms of one flat array; a list that outgrows its room moves to the next size.
    """

    def __init__(self, depth: int, rooms: tuple[int, ...] | None = None) -> None:
        """rooms: sizes that a list's room may have, ascending, the last of them `depth`; one size without."""
        self.depth = depth
        self._rooms = rooms or (depth,)
        self._start = np.empty(0, np.int64)
        self._room = np.empty(0, np.int32)
        self._count = np.empty(0, np.int32)
        # The first room stays empty: there the lists of those lie that met nobody.
        self._others = np.full(depth, NOBODY, np.int32)
        self._times = np.zeros(depth, np.float64)
        self._used = depth
        self._n = 0
        self._free: dict[int, list[int]] = {room: [] for room in self._rooms}

    def __len__(self) -> int:
        """One more than the highest key ever met."""
        return self._n

    def counts(self, keys: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int32]:
        """int32[k]: how long the list of each key is."""
        counts = np.zeros(len(keys), np.int32)
        known = keys < len(self)
        counts[known] = self._count[keys[known]]
        return counts

    def others(self, key: int) -> Others:
        """int32[≤ depth], newest first; a copy."""
        if key >= len(self):
            return np.empty(0, np.int32)
        start = int(self._start[key])
        return self._others[start : start + int(self._count[key])].copy()

    def joined(self, keys: NDArray[np.int32]) -> tuple[NDArray[np.int32], Others]:
        """int32[k], how long the list of each key is, and all of these lists one after the other; copies."""
        if keys.max(initial=-1) < len(self):
            counts = self._count.take(keys)
            return counts, self._others.take(_ranges(self._start.take(keys), counts))
        counts = self.counts(keys)
        return counts, self.joined(keys[counts > 0])[1]

    def times(self, key: int) -> Times:
        """float64[≤ depth], unix seconds of each of `others(key)`; a copy."""
        if key >= len(self):
            return np.empty(0, np.float64)
        start = int(self._start[key])
        return self._times[start : start + int(self._count[key])].copy()

    def table(self, keys: Others) -> NDArray[np.int32]:
        """int32[k, depth]: the lists of known keys, filled up with NOBODY; a copy. Only where rooms have one size."""
        return self._others.reshape(-1, self.depth).take(self._start.take(keys) // self.depth, axis=0)

    def meet(self, keys: Others, others: Others, times: Times) -> None:
        """Each key met each other at that time (unix seconds)."""
        if not len(keys):
            return
        if len(keys) <= ONE_BY_ONE:
            for key, other, time in zip(keys.tolist(), others.tolist(), times.tolist(), strict=True):
                self.meet_one(key, other, time)
        else:
            self.write(self.merged(keys, others, times))

    def merged(self, keys: Others, others: Others, times: Times) -> Lists:
        """The lists that change when these meet, as they are after it; changes none of them. For `write`."""
        self._reserve(int(keys.max(initial=-1)) + 1)
        new, others, times = self._late_enough(*_latest_per_pair(keys.astype(np.int64), others, times))
        touched = np.unique(new)
        held = self._lists(touched)
        stays, comes = _newer(held, new, others, times)
        of_list = np.repeat(np.arange(len(touched)), held.counts)
        counts = np.bincount(of_list[stays], minlength=len(touched)).astype(np.int32)
        held = Lists(touched, counts, held.others[stays], held.times[stays])
        return _merged(held, new[comes], others[comes], times[comes], self.depth)

    def write(self, lists: Lists) -> None:
        """Sets lists; none may become shorter than it was."""
        self._settle(lists.keys, lists.counts)
        self._count[lists.keys] = lists.counts
        places = self._places(lists.keys)
        self._others[places], self._times[places] = lists.others, lists.times

    def drop(self, keys: Iterable[int]) -> None:
        """Empties the lists of these keys."""
        for key in keys:
            if key < len(self):
                self._release(key)

    def replace(self, key: int, others: Others, times: Times) -> None:
        """Sets the list of one key to the latest of these."""
        self.drop([key])
        self.meet(np.full(len(others), key, np.int32), others, times)

    def holding(self, others: Others) -> NDArray[np.int64]:
        """int64[k]: the keys in whose lists any of these stands, ascending. Looks through all lists."""
        places = np.flatnonzero(np.isin(self._others[: self._used], others))
        lists = np.flatnonzero(self._count)
        by_start = lists[np.argsort(self._start[lists])]
        keys: NDArray[np.int64] = by_start[self._start[by_start].searchsorted(places, "right") - 1]
        return np.unique(keys)

    def remove(self, others: Others, *, keys: NDArray[np.int64]) -> None:
        """Takes others out of the lists of these keys."""
        for key in keys.tolist():
            held, times = self.others(key), self.times(key)
            stays = ~np.isin(held, others)
            self.replace(key, held[stays], times[stays])

    def parts(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The lists of keys first … last-1 as arrays: counts, others, times."""
        keys = np.arange(first, max(first, min(last, len(self))))
        counts, places = self._count[keys], self._places(keys)
        return {"counts": counts, "others": self._others[places], "times": self._times[places]}

    def restore(self, first: int, parts: Mapping[str, NDArray[Any]]) -> None:
        """Sets the lists of the keys from `first` on to what `parts` gave."""
        counts = parts["counts"]
        keys = np.arange(first, first + len(counts))
        self._reserve(first + len(counts))
        self.drop(keys[self._count[keys] > 0].tolist())
        self.write(Lists(keys[counts > 0], counts[counts > 0], parts["others"], parts["times"]))

    def meet_one(self, key: int, other: int, time: float) -> None:
        """`meet` of a single pair."""
        if key >= self._n:
            self._reserve(key + 1)
        start, count = int(self._start[key]), int(self._count[key])
        place = self._place(start, count, other)
        if place < count and time <= self._times[start + place]:
            return
        rank = self._rank(start, count, other, time)
        if rank == self.depth:
            return
        if place == count == self.depth:
            place -= 1
        elif place == count:
            if count == self._room[key]:
                start = self._move(key, count)
            self._count[key] = count + 1
        self._shift(start + rank, start + place)
        self._others[start + rank], self._times[start + rank] = other, time

    def _place(self, start: int, count: int, other: int) -> int:
        """Where in the list the other stands; `count` where it does not."""
        try:
            place: int = self._others[start : start + count].tolist().index(other)
        except ValueError:
            return count
        return place

    def _rank(self, start: int, count: int, other: int, time: float) -> int:
        """How many of the list stand before (time, other)."""
        if not count or time > self._times[start]:
            return 0
        oldest_first = self._times[start : start + count][::-1]
        later, sooner = (count - int(oldest_first.searchsorted(time, side)) for side in ("right", "left"))
        return later + int((self._others[start + later : start + sooner] < other).sum())

    def _shift(self, first: int, last: int) -> None:
        """Moves what lies at first … last-1 one place on."""
        if first < last:
            self._others[first + 1 : last + 1] = self._others[first:last]
            self._times[first + 1 : last + 1] = self._times[first:last]

    def _lists(self, keys: NDArray[np.int64]) -> Lists:
        places = self._places(keys)
        return Lists(keys, self._count[keys], self._others[places], self._times[places])

    def _late_enough(
        self, keys: NDArray[np.int64], others: Others, times: Times
    ) -> tuple[NDArray[np.int64], Others, Times]:
        """Without those that a full list has no room for."""
        late = self._count[keys] < self.depth
        full = np.flatnonzero(~late)
        late[full] = times[full] >= self._times[self._start[keys[full]] + self.depth - 1]
        return keys[late], others[late], times[late]

    def _places(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the flat arrays the lists of these keys lie, one list after the other."""
        return _ranges(self._start[keys], self._count[keys])

    def _settle(self, keys: NDArray[np.int64], counts: NDArray[np.int32]) -> None:
        """Rooms for lists of these lengths; what lies in a list that has to move is lost."""
        growing = counts > self._room[keys]
        keys, counts = keys[growing], counts[growing]
        self.drop(keys[self._room[keys] > 0].tolist())
        sizes = np.array(self._rooms)[np.searchsorted(self._rooms, counts)]
        for room in self._rooms:
            movers, free = keys[sizes == room], self._free[room]
            kept = max(0, len(free) - len(movers))
            freed, fresh = free[kept:], len(movers) - (len(free) - kept)
            del free[kept:]
            opened = self._open(room * fresh) + room * np.arange(fresh)
            self._start[movers], self._room[movers] = np.append(opened, freed), room

    def _move(self, key: int, count: int) -> int:
        """A room for more than `count` others; answers where it starts."""
        held, times = self.others(key), self.times(key)
        self._release(key)
        room = next(room for room in self._rooms if room > count)
        free = self._free[room]
        start = free.pop() if free else self._open(room)
        self._start[key], self._room[key], self._count[key] = start, room, len(held)
        self._others[start : start + len(held)], self._times[start : start + len(held)] = held, times
        return start

    def _open(self, size: int) -> int:
        start, self._used = self._used, self._used + size
        if self._used > len(self._others):
            more = max(self._used, 2 * len(self._others), 1_000 * self.depth) - len(self._others)
            self._others = np.pad(self._others, (0, more), constant_values=NOBODY)
            self._times = np.pad(self._times, (0, more))
        return start

    def _release(self, key: int) -> None:
        room = int(self._room[key])
        if room:
            start = int(self._start[key])
            self._others[start : start + room] = NOBODY
            self._free[room].append(start)
        self._start[key], self._room[key], self._count[key] = 0, 0, 0

    def _reserve(self, n: int) -> None:
        if n > len(self._count):
            more = max(n, 2 * len(self._count), 16) - len(self._count)
            self._start = np.pad(self._start, (0, more))
            self._room = np.pad(self._room, (0, more))
            self._count = np.pad(self._count, (0, more))
        self._n = max(self._n, n)


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int32]) -> NDArray[np.int64]:
    """start … start + count - 1 of each, one after the other."""
    ends = counts.cumsum(dtype=np.int64)
    places: NDArray[np.int64] = (starts - ends + counts).repeat(counts)
    places += np.arange(len(places))
    return places


def _latest_per_pair(keys: NDArray[np.int64], others: Others, times: Times) -> tuple[NDArray[np.int64], Others, Times]:
    """Each pair once, by its latest time; in the order of pairs."""
    pairs = _pairs(keys, others)
    order = np.lexsort((times, pairs))
    pairs = pairs[order]
    last = order[np.append(pairs[1:] != pairs[:-1], np.ones(min(len(pairs), 1), np.bool_))]
    return keys[last], others[last], times[last]


def _newer(
    held: Lists, keys: NDArray[np.int64], others: Others, times: Times
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of what is held stays, and which of the new comes in, where a pair is on both sides: the later one.

    keys, others, times: in the order of pairs, each once
    """
    stays, comes = np.ones(len(held.others), np.bool_), np.ones(len(keys), np.bool_)
    pairs, held_pairs = _pairs(keys, others), _pairs(np.repeat(held.keys, held.counts), held.others)
    place = np.minimum(pairs.searchsorted(held_pairs), max(len(pairs) - 1, 0))
    both = np.flatnonzero(pairs[place] == held_pairs) if len(pairs) else np.empty(0, np.int64)
    place = place[both]
    is_later = times[place] > held.times[both]
    stays[both[is_later]] = False
    comes[place[~is_later]] = False
    return stays, comes


def _merged(held: Lists, keys: NDArray[np.int64], others: Others, times: Times, depth: int) -> Lists:
    """The first `depth` of each list once the new ones are put in where they belong."""
    order = np.lexsort((others, -times, keys))
    keys, others, times = keys[order], others[order], times[order]
    of_list = held.keys.searchsorted(keys)
    ends = np.cumsum(held.counts, dtype=np.int64)
    place = _ranked(held, (ends - held.counts)[of_list], ends[of_list], others, times)
    merged_others = np.insert(held.others, place, others)
    merged_times = np.insert(held.times, place, times)
    counts = held.counts + np.bincount(of_list, minlength=len(held.keys))
    rank = np.arange(len(merged_others)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = rank < depth
    return Lists(held.keys, np.minimum(counts, depth).astype(np.int32), merged_others[first], merged_times[first])


def _ranked(
    held: Lists, low: NDArray[np.int64], high: NDArray[np.int64], others: Others, times: Times
) -> NDArray[np.int64]:
    """Where each (time, other) belongs in the flat lists between low and high: a binary search, for all at once."""
    low, high = low.copy(), high.copy()
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        time, other = held.times[middle], held.others[middle]
        is_before = (time > times[open_]) | ((time == times[open_]) & (other < others[open_]))
        low[open_] = np.where(is_before, middle + 1, low[open_])
        high[open_] = np.where(is_before, high[open_], middle)
    return low


def _pairs(keys: NDArray[np.int64], others: Others) -> NDArray[np.int64]:
    return keys << 32 | others
