"""Who was where: each user's latest items, each item's latest users, and from both what goes with what.

A truncated table of pair counts would depend on the order in which pairs came; two lists that each keep the latest do
not, and a user can be taken out of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.live.covisits import CoVisited, KeptCoVisits
from models.live.recency import NOBODY, ONE_BY_ONE, Lists, Others, RecencyLists, Times

TRAIL = 10
"""Items kept per user."""
VISITORS = 100
"""Users kept per item."""
_VISITOR_ROOMS = (4, 12, 36, VISITORS)
_NONE = np.empty(0, np.int32)


class Trails:
    """Visits of users to items. Not safe for threads; see LiveState."""

    def __init__(self) -> None:
        self._items_of = RecencyLists(TRAIL)
        self._users_of = RecencyLists(VISITORS, _VISITOR_ROOMS)
        self._last_at = np.empty(0, np.float64)
        self._kept = KeptCoVisits(VISITORS)
        # All 0 between two questions.
        self._place_of = np.zeros(0, np.int16)

    @property
    def last_at(self) -> Times:
        """float64[n]: unix seconds of each item's latest visit, -inf where none."""
        return self._last_at[: len(self._users_of)].copy()

    def visit(self, users: Others, items: Others, timestamps: Times) -> None:
        """The user came to the item, in unix seconds; any order, any batches, repeats too."""
        if len(users) > ONE_BY_ONE:
            self.write(self.after(users, items, timestamps))
            return
        self._kept.drop(users, items.tolist())
        for user, item, time in zip(users.tolist(), items.tolist(), timestamps.tolist(), strict=True):
            self._items_of.meet_one(user, item, time)
            self._users_of.meet_one(item, user, time)
            self._reserve()
            self._last_at[item] = max(self._last_at[item], time)

    def after(self, users: Others, items: Others, timestamps: Times) -> tuple[Lists, Lists]:
        """What these visits change, as it is then; for `write`, before which nothing else may change."""
        return self._items_of.merged(users, items, timestamps), self._users_of.merged(items, users, timestamps)

    def write(self, after: tuple[Lists, Lists]) -> None:
        """Quick, compared with `after`."""
        trails, visitors = after
        self._kept.drop(trails.keys, visitors.keys.tolist())
        self._items_of.write(trails)
        self._users_of.write(visitors)
        self._reserve()
        firsts = np.cumsum(visitors.counts) - visitors.counts
        self._last_at[visitors.keys] = visitors.times[firsts]

    def forget(self, users: Others) -> None:
        """The users never came. Lists that were full are short then, until `refill`; see `losing`."""
        self._kept.clear()
        self._items_of.drop(users.tolist())
        left = self._users_of.holding(users)
        self._users_of.remove(users, keys=left)
        self._date(left.tolist())

    def holding(self, users: Others) -> NDArray[np.int64]:
        """int64[k]: items among whose visitors any of these users is."""
        return self._users_of.holding(users)

    def losing(self, users: Others) -> NDArray[np.int64]:
        """int64[k]: items whose list of visitors is full and would lose one of these: others were cut off it."""
        holding = self._users_of.holding(users)
        full: NDArray[np.int64] = holding[self._users_of.counts(holding) == VISITORS]
        return full

    def refill(self, item: int, users: Others, timestamps: Times) -> None:
        """Sets an item's visitors to these, of whom the latest are kept; the users' own trails stay as they are."""
        self._kept.drop(_NONE, [item])
        self._users_of.replace(item, users, timestamps)
        self._reserve()
        self._date([item])

    def trail(self, user: int) -> Others:
        """int32[≤ 10]: the user's latest items, newest first."""
        return self._items_of.others(user)

    def visitors(self, item: int) -> Others:
        """int32[≤ 100]: the item's latest users, newest first."""
        return self._users_of.others(item)

    def covisited(self, item: int) -> CoVisited:
        """Where else the item's latest users were of late: items, ascending, and the share of those users, 0–1."""
        return self._kept.get(item) or self._count(item)

    def nearness(self, items: Others, among: Others) -> NDArray[np.float32]:
        """float32[k]: of each of `among` the largest share, 0–1, that `covisited` names for it with any of the items.

        items, among: rows, none negative: -1 would be NOBODY, whose places fill up short lists.
        Looks for these alone, so nothing is kept: an item's visitors may come and go between any two questions.
        """
        counts, users = self._users_of.joined(items)
        k = len(among)
        if not len(users) or not k:
            return np.zeros(k, np.float32)
        places = self._places_among(among, users)
        visits = places.nonzero()[0]
        of_item = np.arange(-1, k * len(counts) - 1, k).repeat(counts)
        pairs = of_item.take(visits // TRAIL)
        pairs += places.take(visits)
        together = np.bincount(pairs, minlength=k * len(counts)).reshape(-1, k)
        together[items[:, None] == among] = 0
        # Of an item without visitors nothing is counted.
        shares = (together / np.maximum(counts, 1)[:, None]).max(axis=0)
        return np.asarray(shares, np.float32)

    def _places_among(self, among: Others, users: Others) -> NDArray[np.int16]:
        """int16[10 per user]: of each item of the users' trails its place in `among`, from 1; 0 where it has none."""
        n = max(self.n_items, int(among.max()) + 1)
        if n >= len(self._place_of):
            # One for all questions: to clear it for each takes as long as to read from it. The last is NOBODY's.
            self._place_of = np.zeros(2 * n + 1, np.int16)
        self._place_of[among] = np.arange(1, len(among) + 1)
        places = self._place_of.take(self._items_of.table(users).ravel())
        self._place_of[among] = 0
        return places

    def _count(self, item: int) -> CoVisited:
        users = self._users_of.others(item)
        found = self._counted(item, users)
        for part in found:
            part.setflags(write=False)
        self._kept.keep(item, users, found)
        return found

    def _counted(self, item: int, users: Others) -> CoVisited:
        if not len(users):
            return CoVisited(np.empty(0, np.int32), np.empty(0, np.float32))
        found = self._items_of.table(users).ravel()
        found.sort()
        # np.unique does the same in three times the time.
        changes = np.ones(len(found) + 1, np.bool_)
        np.not_equal(found[1:], found[:-1], out=changes[1:-1])
        bounds = changes.nonzero()[0]
        items, counts = found[bounds[:-1]], bounds[1:] - bounds[:-1]
        others = (items != NOBODY) & (items != item)
        return CoVisited(items[others], (counts[others] / len(users)).astype(np.float32))

    def item_parts(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The visitors of items first … last-1 as arrays."""
        return self._users_of.parts(first, last)

    def user_parts(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The trails of users first … last-1 as arrays."""
        return self._items_of.parts(first, last)

    def restore_items(self, first: int, parts: Mapping[str, NDArray[Any]]) -> None:
        self._kept.clear()
        self._users_of.restore(first, parts)
        self._reserve()
        self._date(range(first, first + len(parts["counts"])))

    def restore_users(self, first: int, parts: Mapping[str, NDArray[Any]]) -> None:
        self._kept.clear()
        self._items_of.restore(first, parts)

    @property
    def n_users(self) -> int:
        """One more than the highest user ever seen."""
        return len(self._items_of)

    @property
    def n_items(self) -> int:
        """One more than the highest item ever seen."""
        return len(self._users_of)

    def _date(self, items: list[int] | range) -> None:
        for item in items:
            self._last_at[item] = self._users_of.times(item).max(initial=-np.inf)

    def _reserve(self) -> None:
        if len(self._users_of) > len(self._last_at):
            more = max(len(self._users_of), 2 * len(self._last_at), 16) - len(self._last_at)
            self._last_at = np.pad(self._last_at, (0, more), constant_values=-np.inf)
