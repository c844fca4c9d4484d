"""What is served while there is no release: everything, by how much it is chosen now."""

from __future__ import annotations

import numpy as np

from app.catalog.snapshot import CatalogSnapshot
from app.serving.model_host import ServedRelease
from app.serving.routing import LAST_RESORT
from models.artifacts import RowMap
from models.live.counters import HALF_LIVES
from models.retrieval.live_counts import DEFAULT, ExpectedCounts, LiveCounts
from models.retrieval.popularity import Popularity


def release_without_models(catalog: CatalogSnapshot) -> ServedRelease:
    """A release of live counts, which learned nothing and expects the same of every item."""
    n = len(catalog)
    nothing = np.zeros((len(HALF_LIVES) + 1, n), np.float32)
    counts = LiveCounts(nothing, ExpectedCounts(np.zeros(1, np.float32)), np.ones(n, np.float32), DEFAULT)
    popularity = Popularity(nothing[-1:], ("all",), "all")
    return ServedRelease(None, {LiveCounts.name: counts, LAST_RESORT: popularity}, RowMap.of(np.arange(n)))
