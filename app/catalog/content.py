"""What items are about, as the ItemTable that encoders read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from app.storage.tables import items
from models.data.dataset import ItemTable

COLUMNS = (
    items.c.row, items.c.kind, items.c.title, items.c.text, items.c.categories, items.c.tags, items.c.creator,
    items.c.published_at, items.c.features,
)  # fmt: skip


def load_item_table(db: Connection, rows: NDArray[np.int32]) -> ItemTable:
    """The content of these rows, in their order. Every row must be that of a stored item."""
    found = {row.row: row for row in db.execute(select(*COLUMNS).where(items.c.row.in_(rows.tolist())))}
    return item_table([found[row] for row in rows.tolist()])


def item_table(rows: Sequence[Any]) -> ItemTable:
    """An ItemTable of result rows that have COLUMNS."""
    return ItemTable(
        categories=[tuple(row.categories) for row in rows],
        tags=[tuple(row.tags) for row in rows],
        texts=[" ".join(part for part in (row.title, row.text) if part) for row in rows],
        creators=[row.creator for row in rows],
        kinds=[row.kind for row in rows],
        published=np.array([row.published_at.timestamp() if row.published_at else np.nan for row in rows]),
        features=_features([row.features for row in rows]),
    )


def _features(given: Sequence[Sequence[float] | None]) -> NDArray[np.float32]:
    """float32[n, d] of the most common length; rows of NaN for items without, or with another length."""
    lengths = [len(vector) for vector in given if vector]
    width = max(set(lengths), key=lengths.count) if lengths else 0
    matrix = np.full((len(given), width), np.nan, np.float32)
    for i, vector in enumerate(given):
        if vector and len(vector) == width:
            matrix[i] = vector
    return matrix
