"""What filters need to know of items, as arrays by row: immutable, and brought up to date by deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]
UNKNOWN = -1
"""Code of an item without a kind or creator."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Strings as codes, so that a filter compares integers."""

    codes: dict[str, int]

    def with_words(self, words: Iterable[str | None]) -> Vocabulary:
        new = sorted({word for word in words if word is not None} - self.codes.keys())
        start = len(self.codes)
        return Vocabulary(self.codes | {word: start + i for i, word in enumerate(new)}) if new else self

    def code(self, word: str | None) -> int:
        """UNKNOWN for None; a code that no item has for a word that no item has."""
        return UNKNOWN if word is None else self.codes.get(word, len(self.codes))


@dataclass(frozen=True, slots=True)
class CatalogSnapshot:
    """Items by row, as they were when every transaction below `watermark` had ended.

    ids:        item id of each row, "" for a row number that no item has
    exists:     bool[n], false for deleted items and for row numbers that no item has
    kinds:      int32[n], codes of `kind_codes`
    creators:   int32[n], codes of `creator_codes`
    categories: the categories of each row
    by_category: rows of each category, sorted
    changed_xids: int64[n], the transaction that changed each row last
    """

    ids: tuple[str, ...]
    row_of: dict[str, int]
    exists: Mask
    kinds: Rows
    creators: Rows
    categories: tuple[tuple[str, ...], ...]
    by_category: dict[str, Rows]
    kind_codes: Vocabulary
    creator_codes: Vocabulary
    changed_xids: NDArray[np.int64]
    watermark: int

    @classmethod
    def empty(cls) -> CatalogSnapshot:
        nothing, words = np.empty(0, np.int32), Vocabulary({})
        return cls((), {}, np.empty(0, np.bool_), nothing, nothing, (), {}, words, words, np.empty(0, np.int64), 0)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, item_id: str) -> int | None:
        """The row of an item that exists, else None."""
        row = self.row_of.get(item_id)
        return row if row is not None and self.exists[row] else None

    def mask(self, *, categories: Sequence[str] = (), kind: str | None = None, creator: str | None = None) -> Mask:
        """bool[n]: existing items in any of the categories, of this kind, by this creator."""
        allowed = self.exists
        if categories:
            chosen = np.zeros(len(self), np.bool_)
            for category in categories:
                chosen[self.by_category.get(category, np.empty(0, np.int32))] = True
            allowed = allowed & chosen
        if kind is not None:
            allowed = allowed & (self.kinds == self.kind_codes.code(kind))
        if creator is not None:
            allowed = allowed & (self.creators == self.creator_codes.code(creator))
        return allowed

    def rows(self, item_ids: Iterable[str]) -> Rows:
        """int32[k]: rows of the ids that are known; the others cannot be in any answer anyway."""
        return np.array([self.row_of[item_id] for item_id in item_ids if item_id in self.row_of], np.int32)


_XMIN = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"
_CHANGED = """
    SELECT row, item_id, kind, creator, categories, deleted_at, changed_xid::text AS changed_xid
    FROM items WHERE changed_xid >= %(since)s::xid8 ORDER BY row
"""


def refresh(db: Connection, old: CatalogSnapshot) -> tuple[CatalogSnapshot, Rows]:
    """The snapshot of now, and which rows changed since `old`, in what is kept here or in their content.

    Rows are found by the transaction that changed them: sequence numbers are handed out in another order
    than transactions commit in, so a reader that goes by them misses rows.
    """
    # Read before the rows: what commits in between is found again the next time, harmlessly.
    xmin = int(db.exec_driver_sql(_XMIN).scalar_one())
    changed = db.exec_driver_sql(_CHANGED, {"since": str(old.watermark)}).all()
    fresh = [row for row in changed if row.row >= len(old) or old.changed_xids[row.row] != int(row.changed_xid)]
    if not fresh:
        return replace(old, watermark=_watermark(old.changed_xids, xmin)), np.empty(0, np.int32)
    return _apply(old, fresh, xmin), np.array([row.row for row in fresh], np.int32)


def _watermark(changed_xids: NDArray[np.int64], xmin: int) -> int:
    """Not above what is surely written down, as is what can be seen where commits are synchronous: after a crash
    Postgres gives higher numbers, of transactions that ended in vain, to others."""
    return min(xmin, int(changed_xids.max(initial=0)) + 1)


def _apply(old: CatalogSnapshot, changed: Sequence[Any], xmin: int) -> CatalogSnapshot:
    size = max(len(old), changed[-1].row + 1)
    kind_codes = old.kind_codes.with_words(row.kind for row in changed)
    creator_codes = old.creator_codes.with_words(row.creator for row in changed)
    ids, categories = [*old.ids, *[""] * (size - len(old))], [*old.categories, *[()] * (size - len(old))]
    exists, kinds, creators, changed_xids = (
        _grown(old.exists, size, False),
        _grown(old.kinds, size, UNKNOWN),
        _grown(old.creators, size, UNKNOWN),
        _grown(old.changed_xids, size, 0),
    )
    touched: set[str] = set()
    for row in changed:
        touched.update(categories[row.row], row.categories)
        ids[row.row], categories[row.row] = row.item_id, tuple(row.categories)
        exists[row.row], changed_xids[row.row] = row.deleted_at is None, int(row.changed_xid)
        kinds[row.row], creators[row.row] = kind_codes.code(row.kind), creator_codes.code(row.creator)
    return CatalogSnapshot(
        ids=tuple(ids),
        row_of=old.row_of | {row.item_id: row.row for row in changed},
        exists=exists,
        kinds=kinds,
        creators=creators,
        categories=tuple(categories),
        by_category=old.by_category | _rows_by_category(categories, touched, old.by_category, changed),
        kind_codes=kind_codes,
        creator_codes=creator_codes,
        changed_xids=changed_xids,
        watermark=_watermark(changed_xids, xmin),
    )


def _rows_by_category(
    categories: Sequence[tuple[str, ...]], touched: set[str], old: dict[str, Rows], changed: Sequence[Any]
) -> dict[str, Rows]:
    """The rows of each touched category: those it had, less the changed ones, plus those that now carry it."""
    changed_rows = np.array([row.row for row in changed], np.int32)
    added: dict[str, list[int]] = {category: [] for category in touched}
    for row in changed:
        for category in categories[row.row]:
            added[category].append(row.row)
    kept = {
        category: np.setdiff1d(old.get(category, np.empty(0, np.int32)), changed_rows, assume_unique=True)
        for category in touched
    }
    return {
        category: np.sort(np.concatenate([kept[category], np.array(rows, np.int32)]))
        for category, rows in added.items()
    }


def _grown(array: NDArray[Any], size: int, fill: object) -> NDArray[Any]:
    grown = np.full(size, fill, array.dtype)
    grown[: len(array)] = array
    return grown
