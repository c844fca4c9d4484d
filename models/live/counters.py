"""How much of late there is of each item, for several meanings of "of late".

Forward decay (Cormode et al., 2009): an event of mass m at time t adds m × 2^((t - landmark) / half-life), once and
for ever; asking "as of" a time multiplies everything by one factor. So nothing ages by itself, order does not matter,
and what was added can be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOUR = 3_600.0
DAY = 86_400.0
HALF_LIVES = (HOUR, 6 * HOUR, DAY, 4 * DAY, 16 * DAY, 64 * DAY)
"""Seconds. Neighbours differ by a factor of 4 to 6: what lies between is well told by the two around it."""

_HEADROOM = 512
"""Half-lives after which the landmark moves: float64 ends at 1,023, and sums need room too."""
_ONE_BY_ONE = 4
"""Up to so many events a loop beats the setting up of vectorised steps."""


class DecayedCounters:
    """Decayed sums of masses per item. Not safe for threads; see LiveState."""

    def __init__(self, half_lives: tuple[float, ...] = HALF_LIVES, n_items: int = 0) -> None:
        """half_lives: seconds. n_items: counted from the start; grows with the highest item seen."""
        self.half_lives = half_lives
        self.newest = -np.inf
        """Unix seconds: the latest time ever added, also where it was taken back since."""
        self._lives = np.array(half_lives, np.float64)
        # A whole number of half-lives after 1970, so that moving it scales by a power of two, which is exact.
        self._landmarks: NDArray[np.float64] = np.full(len(half_lives), np.nan)
        self._horizon = -np.inf
        self._sums = np.zeros((len(half_lives), max(n_items, 16)), np.float64)
        self._totals = np.zeros(max(n_items, 16), np.float64)
        self._entries = np.zeros(max(n_items, 16), np.int64)
        # Sums over all items: to add up a million of them takes longer than to answer.
        self._all_sums = np.zeros(len(half_lives), np.float64)
        self._all_total = 0.0
        self._n = n_items

    def __len__(self) -> int:
        """Items that are counted: one more than the highest seen."""
        return self._n

    @property
    def totals(self) -> NDArray[np.float32]:
        """float32[n]: the masses, undecayed."""
        return np.maximum(self._totals[: self._n], 0).astype(np.float32)

    def add(self, items: NDArray[np.int32], masses: NDArray[np.float64], timestamps: NDArray[np.float64]) -> None:
        """Counts each (item, mass, unix seconds); a negative mass takes back what was added before.

        An item of which everything was taken back is at 0, exactly. Of the others a sum is right to a part in 10^15
        of the largest mass it ever held.
        """
        if not len(items):
            return
        self._reserve(int(items.max()) + 1)
        with np.errstate(under="ignore"):
            self._raise_landmarks(float(timestamps.max()))
            if len(items) <= _ONE_BY_ONE:
                self._add_each(items, masses, timestamps)
            else:
                self._add_all(items, masses, timestamps)

    def at(self, time: float) -> NDArray[np.float32]:
        """float32[H, n]: the masses decayed as of `time`, in unix seconds; not before `newest`, which holds then."""
        if not self._n or np.isnan(self._landmarks[0]):
            return np.zeros((len(self._lives), self._n), np.float32)
        with np.errstate(under="ignore"):
            decayed = self._sums[:, : self._n] * self._factors(time)[:, None]
            # What was taken back may leave a rest of rounding below 0.
            return np.maximum(decayed, 0, out=decayed).astype(np.float32)

    def of(self, items: NDArray[np.integer[Any]], time: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """float32[H, k] and float32[k]: what `at` and `totals` say of these items; 0 of items never seen."""
        if not self._n or np.isnan(self._landmarks[0]):
            return np.zeros((len(self._lives), len(items)), np.float32), np.zeros(len(items), np.float32)
        if len(items) and items.max() >= self._n:
            known = items < self._n
            counts, totals = self.of(np.where(known, items, 0), time)
            return np.where(known, counts, np.float32(0)), np.where(known, totals, np.float32(0))
        decayed = self._sums.take(items, axis=1)
        decayed *= self._factors(time)[:, None]
        counts, totals = decayed.astype(np.float32), self._totals.take(items).astype(np.float32)
        return np.maximum(counts, 0, out=counts), np.maximum(totals, 0, out=totals)

    def masses(self, time: float) -> tuple[NDArray[np.float64], float]:
        """float64[H], and of all time: the sums over all items, decayed as of `time` as `at` is."""
        if np.isnan(self._landmarks[0]):
            return np.zeros(len(self._lives)), 0.0
        return np.maximum(self._all_sums * self._factors(time), 0), max(self._all_total, 0.0)

    def leaders(self, most: int, among: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Ascending: the `most` highest by each half-life and of all time; whenever, for decay changes no order.

        among: items of which alone to choose
        """
        n = self._n if among is None else len(among)
        if n <= most:
            return np.arange(n) if among is None else np.sort(among)
        rows = (sums[:n] if among is None else sums[among] for sums in (*self._sums, self._totals))
        found = np.unique(np.concatenate([np.argpartition(row, n - most)[n - most :] for row in rows]))
        return found if among is None else np.sort(among[found])

    def parts(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """The counters of items first … last-1 as arrays, for `restore`."""
        last = min(last, self._n)
        return {
            "landmarks": self._landmarks.copy(),
            "newest": np.array(self.newest),
            "sums": self._sums[:, first:last].copy(),
            "totals": self._totals[first:last].copy(),
            "entries": self._entries[first:last].copy(),
        }

    def restore(self, first: int, parts: Mapping[str, NDArray[Any]]) -> None:
        """Sets the counters of the items from `first` on to what `parts` gave; harmless where it held the same."""
        last = first + parts["totals"].shape[0]
        self._reserve(last)
        if np.isnan(parts["landmarks"][0]):
            return
        if np.isnan(self._landmarks[0]):
            self._landmarks = parts["landmarks"].copy()
        with np.errstate(under="ignore"):
            self._raise_landmarks(float(parts["newest"]))
            shift = np.rint((parts["landmarks"] - self._landmarks) / self._lives).astype(np.int64)
            restored = _scaled(parts["sums"], shift)
            self._all_sums += restored.sum(axis=1) - self._sums[:, first:last].sum(axis=1)
            self._sums[:, first:last] = restored
        self._all_total += float(parts["totals"].sum() - self._totals[first:last].sum())
        self._totals[first:last] = parts["totals"]
        self._entries[first:last] = parts["entries"]

    def _factors(self, time: float) -> NDArray[np.float64]:
        return np.exp2((self._landmarks - max(time, self.newest)) / self._lives)

    def _add_each(self, items: NDArray[np.int32], masses: NDArray[np.float64], timestamps: NDArray[np.float64]) -> None:
        for item, mass, time in zip(items.tolist(), masses.tolist(), timestamps.tolist(), strict=True):
            added = mass * np.exp2((time - self._landmarks) / self._lives)
            self._sums[:, item] += added
            self._totals[item] += mass
            self._all_sums += added
            self._all_total += mass
            self._entries[item] += (mass > 0) - (mass < 0)
            if not self._entries[item]:
                self._empty(item)

    def _add_all(self, items: NDArray[np.int32], masses: NDArray[np.float64], timestamps: NDArray[np.float64]) -> None:
        for row, (landmark, life) in enumerate(zip(self._landmarks, self._lives, strict=True)):
            added = masses * np.exp2((timestamps - landmark) / life)
            np.add.at(self._sums[row], items, added)
            self._all_sums[row] += added.sum()
        np.add.at(self._totals, items, masses)
        self._all_total += float(masses.sum())
        np.add.at(self._entries, items, np.sign(masses).astype(np.int64))
        self._empty(np.unique(items[self._entries[items] == 0]))

    def _empty(self, items: int | NDArray[np.int32]) -> None:
        self._all_sums -= self._sums[:, items].reshape(len(self._lives), -1).sum(axis=1)
        self._all_total -= float(np.sum(self._totals[items]))
        self._sums[:, items] = 0
        self._totals[items] = 0

    def _raise_landmarks(self, newest: float) -> None:
        self.newest = max(self.newest, newest)
        if self.newest < self._horizon:
            return
        wanted = np.floor(self.newest / self._lives) * self._lives
        moves = ~(wanted - self._landmarks <= _HEADROOM / 2 * self._lives)
        if not np.isnan(self._landmarks[0]):
            powers = np.rint((self._landmarks - wanted)[moves] / self._lives[moves]).astype(np.int64)
            self._sums[moves] = _scaled(self._sums[moves], powers)
            self._all_sums[moves] = _scaled(self._all_sums[moves, None], powers)[:, 0]
        self._landmarks = np.where(moves, wanted, self._landmarks)
        self._horizon = float((self._landmarks + _HEADROOM * self._lives).min())

    def _reserve(self, n: int) -> None:
        if n > len(self._totals):
            more = max(n, 2 * len(self._totals)) - len(self._totals)
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
            self._totals = np.pad(self._totals, (0, more))
            self._entries = np.pad(self._entries, (0, more))
        self._n = max(self._n, n)


def _scaled(sums: NDArray[np.float64], powers: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[H, n]: each row of sums × 2^power, exactly but for what underflows. powers: int64[H]"""
    scaled: NDArray[np.float64] = np.ldexp(sums, np.maximum(powers, -5_000).astype(np.int32)[:, None])
    return scaled
