"""The live signals as a release's recommenders ask for them: by position instead of by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.artifacts import RowMap
from models.contracts import Counted, Indices, Leading, Positions, Scores
from models.live.state import LiveState


class _Gathered(NamedTuple):
    """The state's counters by position, as of one version and time."""

    version: int
    as_of: float
    counts: Scores
    totals: Scores


class PositionedSignals:
    """A LiveSignals over a state that goes on changing. May be asked by many threads.

    Items that nobody counted yet are at 0. Gathered once per change of the state: a question then costs one
    multiplication, for decay is a factor.
    """

    def __init__(self, state: LiveState, rows: RowMap) -> None:
        """rows: of the release, with the items that came since."""
        self._state = state
        self._rows = rows
        self._lives = np.array(state.half_lives)
        # As after an import: then to gather is to copy, ten times faster.
        self._in_order = np.array_equal(rows.row_of_position, np.arange(len(rows.row_of_position)))
        self._gathered: _Gathered | None = None
        # The state's leading rows, and their positions.
        self._leading = self._since = np.empty(0, np.int32), np.empty(0, np.int32)
        self._unknown = 0, np.empty(0, np.int64)

    @property
    def half_lives(self) -> tuple[float, ...]:
        return self._state.half_lives

    @property
    def newest(self) -> float:
        return self._state.newest

    @property
    def version(self) -> int:
        return self._state.version

    def counts(self, at: float) -> Scores:
        """float32[H, n positions]: masses decayed as of `at`; of the state's `as_of`, where that is later."""
        gathered = self._current()
        if not at > gathered.as_of:
            return gathered.counts
        with np.errstate(under="ignore"):
            factors = np.exp2((gathered.as_of - at) / self._lives).astype(np.float32)
            return gathered.counts * factors[:, None]

    def totals(self) -> Scores:
        """float32[n positions]"""
        return self._current().totals

    def counted(self, positions: Indices, at: float, n: int) -> Counted:
        """Of these positions alone, `counts` and `totals`; the sums are over positions 0 … n-1."""
        rows = self._rows.row_of_position
        counted = self._state.counted(positions if self._in_order else rows.take(positions), at, len(self._state))
        outside = self._rows_outside(n)
        if not len(outside):
            return counted
        counts, totals, _, _ = self._state.counted(outside, at, len(self._state))
        masses, total = counted.masses - counts.sum(axis=1), counted.total - float(totals.sum())
        return counted._replace(masses=np.maximum(masses, 0), total=max(total, 0.0))

    def leading(self) -> Leading:
        """The most chosen items by each half-life and of all time, and those that were met since."""
        chosen, since = self._state.leading()
        # Another thread may put there what it was told.
        leading, met = self._leading, self._since
        if leading[0] is not chosen:
            leading = self._leading = chosen, np.sort(self._known(chosen))
        if met[0] is not since:
            met = self._since = since, self._known(since)
        return Leading(leading[1], met[1])

    def _known(self, rows: NDArray[np.int32]) -> Positions:
        positions = self._rows.positions_of(rows)
        return positions[positions >= 0]

    def covisited(self, position: int) -> tuple[Positions, Scores]:
        """Items that the item's latest visitors were at of late, and the share of those visitors, 0–1."""
        return self.covisited_each([position])[0]

    def covisited_each(self, positions: Sequence[int]) -> list[tuple[Positions, Scores]]:
        """See `LiveSignals.covisited_each`."""
        rows = positions if self._in_order else self._rows.row_of_position[positions].tolist()
        return [self._at_positions(*covisited) for covisited in self._state.covisited_each(rows)]

    def _at_positions(self, rows: Positions, shares: Scores) -> tuple[Positions, Scores]:
        """Of rows, ascending, those that have a position."""
        if self._in_order and (not len(rows) or rows[-1] < len(self._rows.row_of_position)):
            return rows, shares
        positions = self._rows.positions_of(rows)
        known = positions >= 0
        return positions[known], shares[known]

    def nearness(self, positions: Positions, among: Positions) -> Scores:
        """See `LiveSignals.nearness`."""
        if self._in_order:
            return self._state.nearness(positions, among)
        rows = self._rows.row_of_position
        return self._state.nearness(rows.take(positions).astype(np.int32), rows.take(among).astype(np.int32))

    def _rows_outside(self, n: int) -> NDArray[np.int64]:
        """Rows that are counted and are at none of the positions 0 … n-1: of items that are gone, mostly."""
        counted = len(self._state)
        if self._in_order:
            return np.arange(min(n, len(self._rows.row_of_position)), counted)
        if n != len(self._rows.row_of_position):
            return np.setdiff1d(np.arange(counted), self._rows.row_of_position[:n])
        if self._unknown[0] != counted:
            self._unknown = counted, np.setdiff1d(np.arange(counted), self._rows.row_of_position)
        return self._unknown[1]

    def _current(self) -> _Gathered:
        gathered = self._gathered
        version = self._state.version
        if gathered is None or gathered.version != version:
            as_of = max(self._state.as_of, 0.0)
            # A fold may come between: then `version` is the older one, and the next question gathers again.
            counts, totals = self._by_position(self._state.counts(as_of)), self._by_position(self._state.totals())
            gathered = self._gathered = _Gathered(version, as_of, counts, totals)
        return gathered

    def _by_position(self, by_row: NDArray[np.float32]) -> Scores:
        rows = self._rows.row_of_position
        gathered = np.zeros((*by_row.shape[:-1], len(rows)), np.float32)
        if self._in_order:
            n = min(len(rows), by_row.shape[-1])
            gathered[..., :n] = by_row[..., :n]
        else:
            known = rows < by_row.shape[-1]
            gathered[..., known] = by_row[..., rows[known]]
        gathered.flags.writeable = False
        return gathered
