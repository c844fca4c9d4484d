"""The most chosen items by each half-life, kept at hand while events come in.

By forward decay two items change places only when one of them is met: time alone changes no order. So whatever leads
now led before, or was met since, and no other item has to be looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.live.counters import DecayedCounters

MOST = 500
"""By each half-life, and of all time."""
_MOST_MET = 500
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
        self._taken_back, self._limit = 0, 0

    def counted(self, items: NDArray[np.int32], masses: NDArray[np.float64]) -> None:
        """These were met, or taken back where the mass is negative."""
        if self._leading is not None:
            self._met.update(items.tolist())
            self._met -= self._members
            self._taken_back += int((masses < 0).sum())

    def of(self, counters: DecayedCounters) -> NDArray[np.int32]:
        """int32[k], ascending: the first MOST by each half-life, and those met since they were chosen."""
        if self._leading is None or self._taken_back > _MOST_MET:
            return self._choose(counters.leaders(MOST))
        if len(self._members) + len(self._met) > self._limit:
            return self._choose(counters.leaders(MOST, among=np.array([*self._members, *self._met])))
        if self._met:
            self._members |= self._met
            self._leading = np.union1d(self._leading, np.array([*self._met])).astype(np.int32)
            self._met = set()
        return self._leading

    def _choose(self, leading: NDArray[np.int64]) -> NDArray[np.int32]:
        self._leading = leading.astype(np.int32)
        self._members, self._met, self._taken_back = set(leading.tolist()), set(), 0
        self._limit = len(leading) + _MOST_MET
        return self._leading
