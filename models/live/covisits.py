"""What goes with an item, kept from when it was counted until somebody changes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.live.recency import NOBODY, Others

MOST_KEPT = 4_096
"""Items whose co-visits are kept: about 2 kB each, and 800 bytes for who the visitors were."""


class CoVisited(NamedTuple):
    """Where else an item's visitors were of late.

    items: int32[k], ascending, each once; shares: float32[k], of the visitors
    """

    items: NDArray[np.int32]
    shares: NDArray[np.float32]


class KeptCoVisits:
    """Co-visits by item, each for as long as it holds. Not safe for threads; see LiveState.

    Items are asked for far more often than users go anywhere: so whoever does looks for the items that they visited,
    and who asks need not find out whether what is kept still holds.
    """

    def __init__(self, most_visitors: int) -> None:
        self._kept: dict[int, CoVisited] = {}
        # By row of the table below; that of an item stays its own when its co-visits don't hold any more.
        self._row_of: dict[int, int] = {}
        self._item_of: list[int] = []
        # As wide as an index: to widen them takes longer than to look.
        self._visitors = np.full((0, most_visitors), NOBODY, np.int64)
        # All False between two changes. The last is NOBODY's.
        self._is_changed = np.zeros(1, np.bool_)

    def get(self, item: int) -> CoVisited | None:
        """None where it has to be counted."""
        return self._kept.get(item)

    def keep(self, item: int, visitors: Others, found: CoVisited) -> None:
        """visitors: int32[≤ most], from whose trails it was counted"""
        row = self._row_of.get(item)
        if row is None:
            row = self._room_for(item)
        self._reserve(visitors)
        self._visitors[row, : len(visitors)] = visitors
        self._visitors[row, len(visitors) :] = NOBODY
        self._kept[item] = found

    def drop(self, users: NDArray[np.integer[Any]], items: Iterable[int]) -> None:
        """The trails of these users change, and the visitors of these items."""
        if not self._kept:
            return
        for item in items:
            self._kept.pop(item, None)
        for row in self._rows_of(users):
            self._kept.pop(self._item_of[row], None)

    def clear(self) -> None:
        self._kept.clear()

    def _rows_of(self, users: NDArray[np.integer[Any]]) -> list[int]:
        """Where any of these users stands."""
        self._reserve(users)
        self._is_changed[users] = True
        is_here = self._is_changed.take(self._visitors[: len(self._item_of)].ravel())
        self._is_changed[users] = False
        # Each once, in a fifth of the time that a set of them takes where there are many.
        return np.bincount(is_here.nonzero()[0] // self._visitors.shape[1]).nonzero()[0].tolist()

    def _room_for(self, item: int) -> int:
        """A row, if need be that of the item which has its own for longest."""
        if len(self._item_of) < MOST_KEPT:
            row = len(self._item_of)
            self._item_of.append(item)
            if row == len(self._visitors):
                self._visitors = np.pad(self._visitors, ((0, max(64, row)), (0, 0)), constant_values=NOBODY)
        else:
            first = next(iter(self._row_of))
            row = self._row_of.pop(first)
            self._kept.pop(first, None)
            self._item_of[row] = item
        self._row_of[item] = row
        return row

    def _reserve(self, users: NDArray[np.integer[Any]]) -> None:
        n = int(users.max(initial=NOBODY)) + 1
        if n >= len(self._is_changed):
            self._is_changed = np.zeros(2 * n + 1, np.bool_)
