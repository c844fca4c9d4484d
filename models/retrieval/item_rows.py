"""A matrix with one row per item: the fitted items, then those that arrived since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Scores


@dataclass(frozen=True, slots=True)
class ItemRows:
    """Two blocks read as one, so that a memory-mapped release isn't copied when an item arrives.

    fitted: float32[n, d], may be a read-only memory map
    added:  float32[m, d]
    """

    fitted: Scores
    added: Scores

    @classmethod
    def of(cls, fitted: Scores) -> Self:
        return cls(fitted, np.empty((0, fitted.shape[1]), np.float32))

    def with_added(self, added: Scores) -> Self:
        """The same fitted rows with other ones behind them."""
        return replace(self, added=np.ascontiguousarray(added, np.float32))

    def __len__(self) -> int:
        return len(self.fitted) + len(self.added)

    def take(self, positions: NDArray[np.integer]) -> Scores:
        """float32[k, d]"""
        if len(self.added) == 0:
            return np.asarray(self.fitted.take(positions, axis=0))
        rows = np.empty((len(positions), self.fitted.shape[1]), np.float32)
        is_added = positions >= len(self.fitted)
        rows[~is_added] = self.fitted[positions[~is_added]]
        rows[is_added] = self.added[positions[is_added] - len(self.fitted)]
        return rows

    def dot(self, vector: Scores) -> Scores:
        """float32[n + m]: every row's dot product with float32[d]."""
        if len(self.added) == 0:
            return np.asarray(self.fitted @ vector)
        return np.concatenate([self.fitted @ vector, self.added @ vector])

    def lengths(self) -> Scores:
        """float32[n + m]: every row's Euclidean length."""
        blocks = (self.fitted, self.added)
        return np.asarray(np.sqrt(np.concatenate([np.einsum("ij,ij->i", rows, rows) for rows in blocks])))


def cosines(rows: ItemRows, position: int) -> Scores:
    """float32[n + m]: cosine with the row at `position`; -inf for rows of zeros and at the row itself."""
    lengths = rows.lengths()
    if not 0 <= position < len(rows) or lengths[position] == 0:
        return np.full(len(rows), -np.inf, np.float32)
    products = rows.dot(rows.take(np.array([position]))[0])
    similar = np.full(len(rows), -np.inf, np.float32)
    np.divide(products, lengths * lengths[position], out=similar, where=lengths > 0)
    similar[position] = -np.inf
    return similar
