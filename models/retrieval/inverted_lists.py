"""Inverted lists: where the largest inner products are, found without looking at every row.

Rows are clustered by direction and lie in memory cluster by cluster, in each the longest first. A question is compared
with the directions of the clusters; its angle to one and the length of a row tell what that row may reach. Those that
may reach most are read, then all that may come near the best of these (Sivic and Zisserman, "Video Google", 2003, for
the lists, in which the field says IVF; Teflioudi and Gemulla, "Exact and approximate maximum inner product search with
LEMP", 2016, for the lengths). What is read is compared exactly: whatever is missed, nothing is out of order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Mask, Positions, Scores
from models.membership import is_among

DEVIATIONS = 2.4
"""How far to the question's side of its centre a row is taken to lie, in standard deviations of where directions lie
by chance: 1 / √d of the way."""
ENOUGH = 0.7
"""Rows are read that may reach this share of what the best read first do: rows lie further aside than by chance where
what is in a list isn't all alike. Of a million items with 64 factors (benchmarks/large_catalogue) 99.7 % of the best
fifty are found, among 1,800 to 8,800 rows that are read, in the median 5,100."""
FIRST = 1_000
FIRST_PER_WANTED = 16
"""Rows read first."""
FEWEST_FILTERED = 20_000
"""Where filters leave no more rows than this, it is looked up for each what it may reach."""
MANY = 100_000
"""Rows from which on there are twice as many lists: these are looked at one by one, but lie closer together."""
NOTHING = np.empty(0, np.int32)
_ALL = 4
"""Everything is read, which goes faster row by row, where otherwise it would be more than one in this many."""
_SHORTEST_BLOCK = 8
_ROUNDS = 5
_SAMPLE_PER_LIST = 32
"""Rows per centre that k-means looks at."""
_BLOCK = 16_384
"""Rows that are assigned at once."""


class _Blocks(NamedTuple):
    """Each list cut where it is 8, 16, 32, … rows long.

    lists:    int64[b], which it is of
    starts:   int64[b], its first row
    sizes:    int64[b], rows
    longest:  float32[b], the length of its first row
    shortest: float32[b], of its last
    """

    lists: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    longest: Scores
    shortest: Scores

    def rows(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n]: all that are in these blocks, block by block."""
        starts, sizes = self.starts[blocks], self.sizes[blocks]
        rows: NDArray[np.int64] = (starts - sizes.cumsum() + sizes).repeat(sizes)
        rows += np.arange(len(rows))
        return rows


class _May(NamedTuple):
    """What may be in the answer. share: of all rows, about"""

    allowed: Mask | None
    excluded: Positions
    share: float

    def be(self, positions: Positions) -> Mask:
        """bool[n]"""
        may = ~is_among(positions, self.excluded)
        return may if self.allowed is None else may & self.allowed.take(positions)


@dataclass(frozen=True)
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
        """rows: float32[n, d], n at least 1; positions: int32[n], of each row; n_lists: the root of n or twice it"""
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        directions = rows / np.maximum(lengths, 1e-12)[:, None]
        k = min(n_lists or round(math.sqrt(len(rows)) * (2 if len(rows) >= MANY else 1)), len(rows))
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

    def near(self, vector: Scores, n_rows: int) -> tuple[Positions, Scores]:
        """Positions and inner products of about so many rows: those that may reach most."""
        rows = self._blocks.rows(self._leading(self._reach(vector), n_rows))
        return self.order.take(rows), self.rows.take(rows, axis=0) @ vector

    def best(
        self,
        vector: Scores,
        most: int,
        *,
        allowed: Mask | None = None,
        excluded: Positions = NOTHING,
        enough: float = ENOUGH,
    ) -> tuple[Positions, Scores]:
        """Positions and inner products in any order: nearly all of the `most` largest that may be, and others.

        allowed: bool[positions], None for all; excluded: int32[k], positions that may not be either
        """
        n_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if n_allowed > FEWEST_FILTERED or allowed is None:
            may = _May(allowed, excluded, n_allowed / len(self))
            found = self._best_of_blocks(vector, most, may, enough)
            if len(found[0]) >= most:
                return found
            if allowed is None:
                return self._all(vector, may)
        positions = allowed[: len(self._row_of)].nonzero()[0]
        rows = self._row_of.take(positions[~is_among(positions, excluded)])
        return self._best_of_rows(vector, most, rows[rows >= 0], enough)

    def _best_of_blocks(self, vector: Scores, most: int, may: _May, enough: float) -> tuple[Positions, Scores]:
        """Fewer than `most` where filters or exclusions take just what is promising."""
        blocks = self._blocks
        reach = self._reach(vector)
        n_first = FIRST + FIRST_PER_WANTED * most
        first = self._leading(reach, math.ceil(n_first / max(may.share, 1e-6)))
        positions, scores = self._read_rows(vector, blocks.rows(first), may)
        if len(scores) < most or most == 0:
            return positions, scores
        needed = _needed(scores, most, enough)
        reach[first] = -np.inf
        rest = (reach >= needed).nonzero()[0]
        if blocks.sizes[rest].sum() * may.share > len(self) / _ALL:
            return self._all(vector, may)
        more_positions, more_scores = self._read_rows(vector, blocks.rows(rest), may)
        return np.concatenate([positions, more_positions]), np.concatenate([scores, more_scores])

    def _best_of_rows(
        self, vector: Scores, most: int, rows: NDArray[np.int32], enough: float
    ) -> tuple[Positions, Scores]:
        n_first = FIRST + FIRST_PER_WANTED * most
        reach = self._per_length(vector).take(self._list_of_row.take(rows)) * -self.lengths.take(rows)
        first = _highest(reach, n_first)
        scores = self.rows.take(rows[first], axis=0) @ vector
        if len(first) == len(rows):
            return self.order.take(rows[first]), scores
        needed = _needed(scores, most, enough)
        reach[first] = -np.inf
        rest = (reach >= needed).nonzero()[0]
        more_scores = self.rows.take(rows[rest], axis=0) @ vector
        return self.order.take(rows[np.concatenate([first, rest])]), np.concatenate([scores, more_scores])

    def _read_rows(self, vector: Scores, rows: NDArray[np.int64], may: _May) -> tuple[Positions, Scores]:
        positions = self.order.take(rows)
        kept = may.be(positions).nonzero()[0]
        return positions.take(kept), self.rows.take(rows.take(kept), axis=0) @ vector

    def _all(self, vector: Scores, may: _May) -> tuple[Positions, Scores]:
        kept = np.ones(len(self), np.bool_) if may.allowed is None else may.allowed.take(self.order)
        rows = self._row_of.take(may.excluded[may.excluded < len(self._row_of)])
        kept[rows[rows >= 0]] = False
        return self.order[kept], (self.rows @ vector)[kept]

    def _leading(self, reach: Scores, most: int) -> NDArray[np.int64]:
        """int64[b]: the blocks of the highest reach that together have so many rows."""
        sizes = self._blocks.sizes
        leading = _highest(reach, most // _SHORTEST_BLOCK + 1)
        if sizes[leading].sum() < most:
            leading = _highest(reach, most)
        leading = leading[(-reach[leading]).argsort()]
        return leading[: int(sizes[leading].cumsum().searchsorted(most)) + 1]

    @cached_property
    def _blocks(self) -> _Blocks:
        sizes = np.diff(self.starts)
        doublings = max(math.ceil(math.log2(max(int(sizes.max()), 1) / _SHORTEST_BLOCK)), 0)
        ranks = np.concatenate([[0], _SHORTEST_BLOCK * 2 ** np.arange(doublings + 1)])
        lists, block = (ranks[:-1] < sizes[:, None]).nonzero()
        starts = self.starts[lists] + ranks[block]
        ends = np.minimum(self.starts[lists] + ranks[block + 1], self.starts[lists + 1])
        return _Blocks(lists, starts, ends - starts, -self.lengths[starts], -self.lengths[ends - 1])

    @cached_property
    def _row_of(self) -> NDArray[np.int32]:
        """int32[positions]: of each the row, -1 where it is in no list."""
        found = np.full(int(self.order.max(initial=-1)) + 1, -1, np.int32)
        found[self.order] = np.arange(len(self), dtype=np.int32)
        return found

    @cached_property
    def _list_of_row(self) -> NDArray[np.int32]:
        return np.arange(len(self.closeness), dtype=np.int32).repeat(np.diff(self.starts))

    def _per_length(self, vector: Scores) -> Scores:
        """float32[k]: the highest inner product to reckon with in each list, for rows of length 1."""
        length = math.sqrt(float(vector @ vector))
        cosines = (self.centres @ vector) / np.float32(max(length, 1e-12))
        sines = np.sqrt(np.maximum(1 - cosines * cosines, 0))
        spread = np.sqrt(1 - self.closeness * self.closeness)
        sideways = np.float32(DEVIATIONS / math.sqrt(len(vector))) * sines * spread
        return np.asarray((cosines * self.closeness + sideways) * np.float32(length))

    def _reach(self, vector: Scores) -> Scores:
        """float32[b]: the highest inner product to reckon with in each block."""
        per_length = self._per_length(vector).take(self._blocks.lists)
        # Of rows that lie against the question the shortest reach highest.
        return np.asarray(np.maximum(per_length * self._blocks.longest, per_length * self._blocks.shortest))

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


def _needed(scores: Scores, most: int, enough: float) -> float:
    """What a row has to be able to reach to be read, after so many that gave these scores."""
    least = float(np.partition(scores, len(scores) - most)[len(scores) - most]) if most else math.inf
    return least - (1 - enough) * abs(least)


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
