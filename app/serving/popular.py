"""Popularity in a time window, from the live signals: what was chosen within it, by counts that decay to match."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from app.errors import Invalid
from app.serving.inventory import Inventory
from app.serving.slate import Shown, items_of
from models.contracts import Query, Reason, Scores
from models.live.state import LiveState
from models.retrieval.dense import best

LONGEST = timedelta(days=365)
_OF_WINDOW = 0.35
"""Half-life over window: an event counted by decay is then as old, on average, as one in the window: ln 2 / 2."""
_WINDOW = re.compile(r"^(?P<count>[1-9][0-9]{0,3})(?P<unit>[hd])$", re.ASCII)


class Window(NamedTuple):
    """length: None for all of time"""

    name: str
    length: timedelta | None


class Popular(NamedTuple):
    """window: the name of the one that answered; items: most chosen first"""

    window: str
    items: list[Shown]


def window_of(text: str) -> Window:
    """`1h` … `365d`, or `all`. Raises Invalid for anything else."""
    if text == "all":
        return Window(text, None)
    match = _WINDOW.match(text)
    if match:
        count = int(match["count"])
        length = timedelta(hours=count) if match["unit"] == "h" else timedelta(days=count)
        if length <= LONGEST:
            return Window(text, length)
    raise Invalid.field(("query", "window"), f"{text!r} is not a window; give 1h … 365d, or all")


WIDER = tuple(map(window_of, ("1h", "6h", "1d", "7d", "30d", "365d", "all")))
"""What an empty window widens to, one after the other."""


def popular_items(
    inventory: Inventory, live: LiveState, window: Window, *, categories: tuple[str, ...], limit: int
) -> Popular:
    """At most `limit` items that anybody chose in the window, or in the next wider one in which anybody did."""
    at = time.time()
    blocked = inventory.rules.blocked(user_id="", categories=categories, at=at)
    query = Query(limit=limit, at=at, eligible=inventory.catalog.mask(categories=categories), excluded=blocked)
    for each in (window, *_wider_than(window)):
        found = best(scores_in(live, each.length, at=at, n_rows=len(inventory.catalog)), query)
        if len(found.positions):
            break
    items = items_of(found.positions.tolist(), found.scores.tolist(), "popular", Reason("popular"))
    return Popular(each.name, items)


def scores_in(live: LiveState, window: timedelta | None, *, at: float, n_rows: int) -> Scores:
    """float32[n_rows]: how much each item was chosen in the window before `at`, -inf where it was not; None: ever."""
    scores = np.full(n_rows, -np.inf, np.float32)
    counts, since = (live.totals(), -np.inf) if window is None else _decayed(live, window, at)
    last_at = live.last_at()
    known = min(n_rows, len(counts), len(last_at))
    chosen = np.flatnonzero(last_at[:known] > since)
    scores[chosen] = counts[chosen]
    return scores


def _decayed(live: LiveState, window: timedelta, at: float) -> tuple[Scores, float]:
    """Counts by the half-life that fits the window, between the two nearest that are kept, and when it begins."""
    counts, length = live.counts(at), window.total_seconds()
    place = float(np.interp(np.log(_OF_WINDOW * length), np.log(live.half_lives), np.arange(len(counts))))
    shorter = min(int(place), len(counts) - 2)
    share = np.float32(place - shorter)
    return (1 - share) * counts[shorter] + share * counts[shorter + 1], at - length


def _wider_than(window: Window) -> list[Window]:
    if window.length is None:
        return []
    return [each for each in WIDER if each.length is None or each.length > window.length]
