"""What is popular now, for the places in a session that nothing else fills: counted once a second, not at each call."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.serving.inventory import Inventory, Mask
from app.serving.model_host import ServedRelease
from app.serving.retrieve import retrieve
from app.serving.routing import CHAINS
from models.contracts import Positions, Query
from models.membership import is_among

KEPT = 1_000


class Fills(NamedTuple):
    """Tracks, best first.

    rows:    int32[n]
    sources: of each the recommender that named it
    """

    rows: NDArray[np.int32]
    sources: list[str]


class _Kept(NamedTuple):
    """For whom this is right: a release, what of it can be shown, and a second."""

    release: ServedRelease
    showable: Mask
    second: int
    found: Fills
    positions: Positions


class PopularFills:
    """One per worker. With every listen the live counts change, and to rank all tracks by them takes milliseconds."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def best(self, inventory: Inventory, excluded: Positions, at: float, limit: int) -> Fills:
        """The `limit` most popular tracks that are not excluded; fewer only where there are no more."""
        kept = self._kept
        if (
            kept is None
            or kept.release is not inventory.release
            or kept.showable is not inventory.showable
            or kept.second != int(at)
        ):
            found = _retrieved(inventory, excluded[:0], at, KEPT)
            positions = inventory.release.positions(found.rows)
            kept = self._kept = _Kept(inventory.release, inventory.showable, int(at), found, positions)
        # No more of them can be excluded than are excluded in all.
        first = kept.positions[: limit + len(excluded)]
        left = (~is_among(first, excluded)).nonzero()[0][:limit]
        if len(left) < limit and len(kept.positions) == KEPT:
            return _retrieved(inventory, excluded, at, limit)
        return Fills(kept.found.rows.take(left), [kept.found.sources[place] for place in left.tolist()])


def _retrieved(inventory: Inventory, excluded: Positions, at: float, limit: int) -> Fills:
    query = Query(limit=limit, at=at, eligible=inventory.eligible(), excluded=excluded, live=inventory.live)
    found = retrieve(inventory.release, CHAINS["new"], query).candidates
    return Fills(np.array([shown.row for shown in found], np.int32), [shown.source for shown in found])
