"""Inverted lists: where the largest inner products are, found without looking at every row.

Rows are clustered by k-means and lie in memory cluster by cluster. A question is compared with the centres, and then
exactly with the rows of the most promising clusters only (Sivic and Zisserman, "Video Google", 2003; as "IVF" in
Jégou et al., "Product quantization for nearest neighbor search", 2011, without the quantisation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Positions, Scores

_ROUNDS = 8
_SAMPLE_PER_LIST = 64
"""Rows per centre that k-means looks at."""
_BLOCK = 16_384
"""Rows that are assigned at once."""


@dataclass(frozen=True, slots=True)
class InvertedLists:
    """Built by `of` or `from_parts`.

    centres: float32[k, d]
    starts:  int64[k + 1], where each list begins
    order:   int32[n], the positions, list by list
    rows:    float32[n, d], in that order
    """

    centres: Scores
    starts: NDArray[np.int64]
    order: Positions
    rows: Scores

    @classmethod
    def of(cls, rows: Scores, positions: Positions, *, seed: int, n_lists: int | None = None) -> Self:
        """rows: float32[n, d], n at least 1; positions: int32[n], of each row; n_lists: the root of n without"""
        n_lists = n_lists or round(math.sqrt(len(rows)))
        rng = np.random.default_rng(seed)
        centres = _centres(rows, min(n_lists, len(rows)), rng)
        lists = _nearest(rows, centres)
        order = np.argsort(lists, kind="stable")
        starts = np.searchsorted(lists[order], np.arange(len(centres) + 1))
        return cls(centres, starts, positions[order].astype(np.int32), np.ascontiguousarray(rows[order]))

    def near(self, vector: Scores, probes: int) -> tuple[Positions, Scores]:
        """Positions and inner products of the rows in the `probes` lists whose centres have the largest ones."""
        k = len(self.centres)
        likeness = self.centres @ vector
        chosen = np.argpartition(likeness, k - probes)[k - probes :] if probes < k else np.arange(k)
        bounds = zip(self.starts[chosen].tolist(), self.starts[chosen + 1].tolist(), strict=True)
        parts = [slice(first, last) for first, last in bounds]
        positions = np.concatenate([self.order[part] for part in parts])
        scores = np.empty(len(positions), np.float32)
        done = 0
        for part in parts:
            after = done + part.stop - part.start
            np.dot(self.rows[part], vector, out=scores[done:after])
            done = after
        return positions, scores

    @classmethod
    def among(cls, arrays: Arrays, prefix: str = "lists.") -> Self | None:
        """Of a recommender's arrays those that are named so; None without any."""
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return cls.from_parts(own) if own else None

    def parts(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_parts(cls, arrays: Arrays) -> Self:
        return cls(arrays["centres"], np.array(arrays["starts"]), arrays["order"], arrays["rows"])


def _centres(rows: Scores, k: int, rng: np.random.Generator) -> Scores:
    """float32[k, d]: k-means (Lloyd 1982) on a sample, from random rows; a centre that loses all rows stays."""
    sample = rows[np.sort(rng.permutation(len(rows))[: k * _SAMPLE_PER_LIST])]
    centres = sample[np.sort(rng.permutation(len(sample))[:k])].astype(np.float32)
    for _ in range(_ROUNDS):
        lists = _nearest(sample, centres)
        counts = np.bincount(lists, minlength=k)
        order = np.argsort(lists, kind="stable")
        held = np.flatnonzero(counts)
        starts = np.searchsorted(lists[order], held)
        centres[held] = np.add.reduceat(sample[order], starts, axis=0) / counts[held, None]
    return centres


def _nearest(rows: Scores, centres: Scores) -> NDArray[np.int32]:
    """int32[n]: each row's nearest centre by Euclidean distance."""
    half_squares = np.einsum("ij,ij->i", centres, centres) / 2
    blocks = (rows[first : first + _BLOCK] for first in range(0, len(rows), _BLOCK))
    found = [(block @ centres.T - half_squares).argmax(axis=1).astype(np.int32) for block in blocks]
    return np.concatenate(found)
