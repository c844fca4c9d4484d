"""Popularity in a time window, counted by Postgres and kept for a few seconds."""

from __future__ import annotations

import re
import threading
import time
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, func, select

from app.errors import Invalid, Unavailable
from app.serving.inventory import Inventory
from app.serving.slate import Shown
from app.storage.tables import interactions
from models.contracts import Query, Reason
from models.retrieval.dense import best

KEPT_SECONDS = 5.0
PATIENCE_SECONDS = 5.0
"""Nobody waits longer for a count under way: a server that hangs must not take every thread."""
LONGEST = timedelta(days=365)
_WINDOW = re.compile(r"^(?P<count>[1-9][0-9]{0,3})(?P<unit>[hd])$", re.ASCII)


def window_of(text: str) -> timedelta | None:
    """`1h` … `365d` as a duration, None for `all`. Raises Invalid for anything else."""
    if text == "all":
        return None
    match = _WINDOW.match(text)
    if match:
        count = int(match["count"])
        window = timedelta(hours=count) if match["unit"] == "h" else timedelta(days=count)
        if window <= LONGEST:
            return window
    raise Invalid.field(("query", "window"), f"{text!r} is not a window; give 1h … 365d, or all")


class WindowCounts:
    """Interactions per item row and window; a window is counted at most once in KEPT_SECONDS."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: dict[timedelta | None, tuple[float, NDArray[np.float32]]] = {}

    def counts(self, window: timedelta | None) -> NDArray[np.float32]:
        """float32[rows]: interactions whose timestamp lies in the window before now.

        Blocks. Raises Unavailable where another count takes too long.
        """
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            raise Unavailable(f"Postgres did not count within {PATIENCE_SECONDS:.0f} s; retry")
        try:
            counted_at, counts = self._kept.get(window, (0.0, np.empty(0, np.float32)))
            if time.monotonic() - counted_at > KEPT_SECONDS or not counted_at:
                counts = self._count(window)
                now = time.monotonic()
                # There are 9,000 windows to ask for: what is no longer fresh goes.
                self._kept = {each: kept for each, kept in self._kept.items() if now - kept[0] <= KEPT_SECONDS}
                self._kept[window] = (now, counts)
            return counts
        finally:
            self._lock.release()

    def _count(self, window: timedelta | None) -> NDArray[np.float32]:
        statement = select(interactions.c.item_row, func.count())
        if window is not None:
            statement = statement.where(interactions.c.timestamp > func.now() - window)
        with self._engine.connect() as db:
            found = db.execute(statement.group_by(interactions.c.item_row)).all()
        counts = np.zeros(1 + max((row for row, _ in found), default=-1), np.float32)
        for row, count in found:
            counts[row] = count
        return counts


def popular_items(
    inventory: Inventory, counts: NDArray[np.float32], *, categories: tuple[str, ...], limit: int
) -> list[Shown]:
    """At most `limit` items that anybody chose in the window, most chosen first."""
    catalog = inventory.catalog
    scores = np.full(len(catalog), -np.inf, np.float32)
    known = min(len(counts), len(catalog))
    scores[:known] = np.where(counts[:known] > 0, counts[:known], -np.inf)
    at = time.time()
    blocked = inventory.rules.blocked(user_id="", categories=categories, at=at)
    found = best(scores, Query(limit=limit, at=at, eligible=catalog.mask(categories=categories), excluded=blocked))
    return [
        Shown(row, score, "popular", False, Reason("popular"))
        for row, score in zip(found.positions.tolist(), found.scores.tolist(), strict=True)
    ]
