"""Inverted lists: where the largest inner products are, found without looking at every row.

Rows are clustered by direction and lie in memory cluster by cluster, in each the longest first. A question is compared
with the directions of the clusters; from its angle to one follows how long a row there has to be to matter, so of each
list only the beginning is read (Sivic and Zisserman, "Video Google", 2003, for the lists, in which the field says IVF;
Teflioudi and Gemulla, "Exact and approximate maximum inner product search with LEMP", 2016, for the lengths).
What is read is compared exactly: whatever is missed, nothing is out of order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Positions, Scores

DEVIATIONS = 2.4
"""How far to the question's side of its centre a row is taken to lie, in standard deviations of where directions lie
by chance: 1 / √d of the way. Of a million items with 64 factors (benchmarks/large_catalogue) 1.6, 2.4 and 3.2 find
97.0, 99.6 and 99.9 % of the best fifty, reading 0.5, 1.2 and 3.6 % of the rows."""
_ROUNDS = 5
_SAMPLE_PER_LIST = 32
"""Rows per centre that k-means looks at."""
_BLOCK = 16_384
"""Rows that are assigned at once."""
_FIRST = 8
"""Lists read before it is known how good the best are."""
_LONGEST = 512
"""Rows read of each of these."""


@dataclass(frozen=True, slots=True)
class InvertedLists:
    """Built by `of` or `from_parts`.

    centres:   float32[k, d] of length 1
    closeness: float32[k], mean cosine of a list's rows with its centre
    starts:    int64[k + 1], where each list begins
    order:     int32[n], the positions, list by list
    rows:      float32[n, d], in that order
    lengths:   float32[n], of the rows, negative: ascending in each list
    """

    centres: Scores
    closeness: Scores
    starts: NDArray[np.int64]
    order: Positions
    rows: Scores
    lengths: Scores

    @classmethod
    def of(cls, rows: Scores, positions: Positions, *, seed: int, n_lists: int | None = None) -> Self:
        """rows: float32[n, d], n at least 1; positions: int32[n], of each row; n_lists: the root of n without"""
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        directions = rows / np.maximum(lengths, 1e-12)[:, None]
        k = min(n_lists or round(math.sqrt(len(rows))), len(rows))
        centres = _centres(directions, k, np.random.default_rng(seed))
        lists = _nearest(directions, centres)
        order = np.lexsort((-lengths, lists))
        cosines = np.einsum("ij,ij->i", directions, centres[lists])
        closeness = np.bincount(lists, cosines, k) / np.maximum(np.bincount(lists, minlength=k), 1)
        return cls(
            centres=centres,
            closeness=np.clip(closeness, 0, 1).astype(np.float32),
            starts=np.searchsorted(lists[order], np.arange(k + 1)),
            order=positions[order].astype(np.int32),
            rows=np.ascontiguousarray(rows[order], np.float32),
            lengths=-lengths[order].astype(np.float32),
        )

    def __len__(self) -> int:
        """Rows."""
        return len(self.order)

    def near(self, vector: Scores, n_lists: int) -> tuple[Positions, Scores]:
        """Positions and inner products of the longest rows in the most promising lists."""
        most = self._per_length(vector, DEVIATIONS) * self._longest()
        return self._read(vector, self._beginnings(_highest(most, n_lists)))

    def best(self, vector: Scores, most: int, *, deviations: float = DEVIATIONS) -> tuple[Positions, Scores]:
        """Positions and inner products in any order: nearly all of the `most` largest, and others."""
        per_length = self._per_length(vector, deviations)
        possible = per_length * self._longest()
        first = self._beginnings(_highest(possible, max(_FIRST, most // _LONGEST * 4)))
        positions, scores = self._read(vector, first)
        if len(scores) < most:
            return self._read(vector, [(0, len(self))])
        least = float(np.partition(scores, len(scores) - most)[len(scores) - most])
        rest = self._long_enough(per_length, possible, least, dict(first))
        more_positions, more_scores = self._read(vector, rest)
        return np.concatenate([positions, more_positions]), np.concatenate([scores, more_scores])

    def _per_length(self, vector: Scores, deviations: float) -> Scores:
        """float32[k]: the highest inner product to reckon with in each list, for rows of length 1."""
        length = math.sqrt(float(vector @ vector))
        cosines = (self.centres @ vector) / np.float32(max(length, 1e-12))
        sines = np.sqrt(np.maximum(1 - cosines * cosines, 0))
        spread = np.sqrt(1 - self.closeness * self.closeness)
        sideways = np.float32(deviations / math.sqrt(len(vector))) * sines * spread
        return np.asarray((cosines * self.closeness + sideways) * np.float32(length))

    def _longest(self) -> Scores:
        """float32[k]: the length of each list's first row."""
        held = np.minimum(self.starts[:-1], len(self) - 1)
        return np.where(self.starts[1:] > self.starts[:-1], -self.lengths[held], np.float32(0))

    def _beginnings(self, lists: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Of each list, from where to where it is read first."""
        starts, ends = self.starts[lists], self.starts[lists + 1]
        return list(zip(starts.tolist(), np.minimum(ends, starts + _LONGEST).tolist(), strict=True))

    def _long_enough(
        self, per_length: Scores, possible: Scores, least: float, read: dict[int, int]
    ) -> list[tuple[int, int]]:
        """From where to where lists have rows that may reach `least`. read: the ends of what was read, by the start."""
        lists = ((possible > least) & (per_length > 0)).nonzero()[0]
        needed = (-max(least, 0.0) / per_length[lists]).tolist()
        found = []
        bounds = zip(self.starts[lists].tolist(), self.starts[lists + 1].tolist(), needed, strict=True)
        for start, end, length in bounds:
            until = start + int(self.lengths[start:end].searchsorted(length, "right"))
            if until > (since := read.get(start, start)):
                found.append((since, until))
        return found

    def _read(self, vector: Scores, parts: list[tuple[int, int]]) -> tuple[Positions, Scores]:
        if not parts:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        scores = [self.rows[start:end] @ vector for start, end in parts]
        return np.concatenate([self.order[start:end] for start, end in parts]), np.concatenate(scores)

    @classmethod
    def among(cls, arrays: Arrays, prefix: str = "lists.") -> Self | None:
        """Of a recommender's arrays those that are named so; None without any."""
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        return cls.from_parts(own) if own else None

    def parts(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_parts(cls, arrays: Arrays) -> Self:
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def _highest(values: Scores, most: int) -> NDArray[np.int64]:
    """int64[≤ most]: where they are, in any order."""
    n = len(values)
    return np.argpartition(values, n - most)[n - most :] if most < n else np.arange(n)


def _centres(directions: Scores, k: int, rng: np.random.Generator) -> Scores:
    """float32[k, d] of length 1: spherical k-means (Dhillon and Modha 2001) on a sample, from random rows.

    A centre that loses all rows stays where it is.
    """
    sample = directions[np.sort(rng.permutation(len(directions))[: k * _SAMPLE_PER_LIST])]
    centres = sample[np.sort(rng.permutation(len(sample))[:k])].astype(np.float32)
    for _ in range(_ROUNDS):
        lists = _nearest(sample, centres)
        order = np.argsort(lists, kind="stable")
        held = np.unique(lists)
        sums = np.add.reduceat(sample[order], np.searchsorted(lists[order], held), axis=0)
        centres[held] = sums / np.maximum(np.sqrt(np.einsum("ij,ij->i", sums, sums)), 1e-12)[:, None]
    return centres


def _nearest(directions: Scores, centres: Scores) -> NDArray[np.int32]:
    """int32[n]: the centre of the largest cosine."""
    blocks = (directions[first : first + _BLOCK] for first in range(0, len(directions), _BLOCK))
    return np.concatenate([(block @ centres.T).argmax(axis=1).astype(np.int32) for block in blocks])
