"""What is served while there is no release: everything, by how often it was chosen."""

from __future__ import annotations

import numpy as np
from sqlalchemy import Connection, func, select

from app.catalog.snapshot import CatalogSnapshot
from app.serving.model_host import ServedRelease
from app.serving.routing import LAST_RESORT
from app.storage.tables import interactions
from models.artifacts import RowMap
from models.retrieval.popularity import Popularity


def release_without_models(db: Connection, catalog: CatalogSnapshot) -> ServedRelease:
    """A release of popularity alone, counted from the interactions of all time."""
    counts = np.zeros(len(catalog), np.float32)
    statement = select(interactions.c.item_row, func.count()).group_by(interactions.c.item_row)
    for row, count in db.execute(statement):
        if row < len(counts):
            counts[row] = count
    rows = RowMap.of(np.arange(len(catalog)))
    return ServedRelease(None, {LAST_RESORT: Popularity(counts[None, :], ("all",), "all")}, rows)
