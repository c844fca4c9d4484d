"""What the cache keeps of one user's past, and its compact form in bytes."""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import orjson
from numpy.typing import NDArray

FORMAT = 1
HEADER = struct.Struct("<BxxxiIIIIII")
"""format, user row (-1: none), history, seen, interactions, positives, bytes of categories and of exposures; 32 bytes,
so that the float64 array behind it is aligned."""
MOST_KEPT = 1_500
KEPT_BYTES = 16 * 2**20
"""So many views stay decoded in each process, and no more than these bytes of them; 1 kB of objects each comes to it.
By default a view has up to 24 kB, so 690 of the largest find room; with a higher `seen_limit` it may have any size."""
LARGEST_KEPT = KEPT_BYTES // 64
"""One with more bytes is decoded each time: it would push out too many others."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class UserView:
    """One user's past: one entry per distinct item by its latest state, oldest first. The same only as itself.

    user_row:     None for a user that the database doesn't know
    rows:         int32[n], the newest `history_length` items
    weights:      float32[n], strength of the feedback; 0 where a like was taken back
    signs:        int8[n], +1, -1 or 0
    timestamps:   float64[n], unix seconds of the event that made the state
    seen:         int32[m], every item interacted with in any way (being shown one doesn't count), a like taken
                  back included; the newest `seen_limit`, oldest first
    interactions: how many distinct items the user interacted with, however many are kept above
    positives:    how many of them are in a positive state
    exposed:      key and run of the experiments that the user is in for good, though the route may change: those that
                  are restricted to one and ran when the past was read
    """

    user_row: int | None
    rows: NDArray[np.int32]
    weights: NDArray[np.float32]
    signs: NDArray[np.int8]
    timestamps: NDArray[np.float64]
    seen: NDArray[np.int32]
    interactions: int
    positives: int
    preferred_categories: tuple[str, ...]
    exposed: frozenset[tuple[str, int]] = frozenset()

    def as_of(self, at: float) -> UserView:
        """The view without the items whose state is from after `at` (unix seconds), for replays.

        An item that was touched before and again after `at` is left out too: the view keeps latest states only.
        """
        later = self.timestamps > at
        if not later.any():
            return self
        return replace(
            self,
            rows=self.rows[~later],
            weights=self.weights[~later],
            signs=self.signs[~later],
            timestamps=self.timestamps[~later],
            seen=np.setdiff1d(self.seen, self.rows[later]),
            interactions=self.interactions - int(later.sum()),
            positives=self.positives - int((self.signs[later] > 0).sum()),
        )

    @classmethod
    def empty(cls) -> UserView:
        """Of a user who is unknown."""
        return cls(
            user_row=None,
            rows=np.empty(0, np.int32),
            weights=np.empty(0, np.float32),
            signs=np.empty(0, np.int8),
            timestamps=np.empty(0, np.float64),
            seen=np.empty(0, np.int32),
            interactions=0,
            positives=0,
            preferred_categories=(),
        )


def encode(view: UserView) -> bytes:
    """21 bytes per item of the history, 4 per seen item, 32 for the rest, the categories and the exposures."""
    categories = orjson.dumps(view.preferred_categories) if view.preferred_categories else b""
    exposed = orjson.dumps(sorted(view.exposed)) if view.exposed else b""
    header = HEADER.pack(
        FORMAT,
        -1 if view.user_row is None else view.user_row,
        len(view.rows),
        len(view.seen),
        view.interactions,
        view.positives,
        len(categories),
        len(exposed),
    )
    arrays = (view.timestamps, view.rows, view.weights, view.seen, view.signs)
    return b"".join((header, *(array.tobytes() for array in arrays), categories, exposed))


class _Decoded:
    """The views that were decoded last, by their bytes. May be asked by many threads."""

    def __init__(self) -> None:
        self._views: OrderedDict[bytes, UserView] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, encoded: bytes) -> UserView | None:
        with self._lock:
            view = self._views.get(encoded)
            if view is not None:
                self._views.move_to_end(encoded)
            return view

    def keep(self, encoded: bytes, view: UserView) -> UserView:
        """The one to go on with: another thread's, where that was quicker."""
        if len(encoded) > LARGEST_KEPT:
            return view
        with self._lock:
            kept = self._views.setdefault(encoded, view)
            if kept is view:
                self._bytes += len(encoded)
            while self._bytes > KEPT_BYTES or len(self._views) > MOST_KEPT:
                self._bytes -= len(self._views.popitem(last=False)[0])
            return kept


_decoded = _Decoded()


def decode(encoded: bytes) -> UserView:
    """The view again; its arrays are read-only windows on `encoded`. The very same one for the same bytes while it is
    kept, so that what was made of it can be kept, too.

    Raises ValueError on bytes that another version of this program wrote.
    """
    return _decoded.get(encoded) or _decoded.keep(encoded, _read(encoded))


def _read(encoded: bytes) -> UserView:
    if len(encoded) < HEADER.size or encoded[0] != FORMAT:
        raise ValueError(f"a user's view starts with {encoded[:1]!r}, this program reads format {FORMAT}")
    _, row, n, m, interactions, positives, n_categories, n_exposed = HEADER.unpack_from(encoded)
    rows = HEADER.size + 8 * n
    weights, seen = rows + 4 * n, rows + 8 * n
    signs = seen + 4 * m
    categories = signs + n
    exposed = categories + n_categories
    if len(encoded) != exposed + n_exposed:
        raise ValueError(f"a user's view has {len(encoded)} bytes, expected {exposed + n_exposed}")
    return UserView(
        user_row=None if row < 0 else row,
        rows=np.frombuffer(encoded, np.int32, n, rows),
        weights=np.frombuffer(encoded, np.float32, n, weights),
        signs=np.frombuffer(encoded, np.int8, n, signs),
        timestamps=np.frombuffer(encoded, np.float64, n, HEADER.size),
        seen=np.frombuffer(encoded, np.int32, m, seen),
        interactions=interactions,
        positives=positives,
        preferred_categories=tuple(orjson.loads(encoded[categories:exposed])) if n_categories else (),
        exposed=frozenset(map(tuple, orjson.loads(encoded[exposed:]))) if n_exposed else frozenset(),
    )
