"""The most chosen items by each half-life, kept at hand while events come in.

By forward decay two items change places only when one of them is met: time alone changes no order. So whatever leads
now led before, or was met since, and no other item has to be looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.contracts import Leading
from models.live.counters import DecayedCounters

MOST = 200
"""By each half-life, and of all time."""
_MOST_MET = 200
"""Items met since the last choice that are taken for leading; more than that, and it is chosen again."""


class Leaders:
    """Which items lead. Not safe for threads; see LiveState.

    Where something is taken back an item falls behind others that nobody met since; those are looked for among all
    once that happened often.
    """

    def __init__(self) -> None:
        self._leading: NDArray[np.int32] | None = None
        self._members: set[int] = set()
        self._met: set[int] = set()
        self._risen = np.empty(0, np.int32)
        self._taken_back = 0

    def counted(self, items: NDArray[np.int32], masses: NDArray[np.float64]) -> None:
        """These were met, or taken back where the mass is negative."""
        if self._leading is not None:
            self._met.update(items.tolist())
            self._met -= self._members
            self._taken_back += int((masses < 0).sum())

    def of(self, counters: DecayedCounters) -> Leading:
        """The first MOST by each half-life, and those met since they were chosen."""
        if self._leading is None or self._taken_back > _MOST_MET:
            return self._choose(counters.leaders(MOST))
        if len(self._met) > _MOST_MET:
            return self._choose(counters.leaders(MOST, among=np.array([*self._members, *self._met])))
        if len(self._met) != len(self._risen):
            self._risen = np.fromiter(self._met, np.int32, len(self._met))
        return Leading(self._leading, self._risen)

    def _choose(self, leading: NDArray[np.int64]) -> Leading:
        self._members, self._met, self._taken_back = set(leading.tolist()), set(), 0
        self._leading, self._risen = leading.astype(np.int32), np.empty(0, np.int32)
        return Leading(self._leading, self._risen)
