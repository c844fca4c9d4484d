"""The live signals by position, over a state by row that goes on changing."""

from __future__ import annotations

import numpy as np
import pytest

from app.live.snapshot import PositionedSignals
from models.artifacts import RowMap
from models.contracts import LiveSignals
from models.live.changes import DayLedger
from models.live.counters import HALF_LIVES
from models.live.state import LiveState

NOW = 1_700_000_000.0
ROWS = RowMap.of(np.array([7, 2, 900, 0]))


def done(state: LiveState, *events: tuple[int, int, float]) -> None:
    """Each (user, item, seconds after NOW)."""
    users, items, after = (np.array(column) for column in zip(*events, strict=True))
    ledger = DayLedger()
    changes = ledger.changes(users.astype(np.int32), items.astype(np.int32), np.ones(len(users)), NOW + after)
    state.fold(changes)


@pytest.fixture
def state() -> LiveState:
    state = LiveState()
    done(state, (1, 2, 0), (2, 2, 0), (1, 7, 60), (2, 5, 120))
    return state


def test_counts_and_totals_are_those_of_the_rows(state: LiveState) -> None:
    signals: LiveSignals = PositionedSignals(state, ROWS)
    assert signals.totals().tolist() == [1, 2, 0, 0]
    assert (signals.half_lives, signals.newest) == (HALF_LIVES, NOW + 120)
    for at in (NOW + 120, NOW + 7_200, NOW + 40 * 86_400):
        counts = signals.counts(at)
        np.testing.assert_allclose(counts[:, :2], state.counts(at)[:, [7, 2]], rtol=1e-5)
        assert not counts[:, 2:].any()


def test_earlier_than_the_newest_event_is_as_of_that(state: LiveState) -> None:
    signals = PositionedSignals(state, ROWS)
    np.testing.assert_array_equal(signals.counts(NOW - 1e9), signals.counts(NOW + 120))
    assert np.isfinite(signals.counts(NOW + 1e12)).all()


def test_what_the_state_learns_later_is_in_the_next_answer(state: LiveState) -> None:
    signals = PositionedSignals(state, ROWS)
    before = signals.counts(NOW + 300)
    done(state, (3, 7, 240), (3, 900, 250))
    assert signals.totals().tolist() == [2, 2, 1, 0]
    np.testing.assert_allclose(signals.counts(NOW + 300)[:, [0, 2]], state.counts(NOW + 300)[:, [7, 900]], rtol=1e-5)
    assert before[0, 0] < 1


def test_answers_can_be_changed_by_nobody_else(state: LiveState) -> None:
    signals = PositionedSignals(state, ROWS)
    with pytest.raises(ValueError, match="read-only"):
        signals.totals()[0] = 5
    fresh = signals.counts(NOW + 999)
    fresh[:] = 5
    assert signals.counts(NOW + 999).max() < 3


def test_covisits_leave_out_what_the_release_does_not_know(state: LiveState) -> None:
    signals = PositionedSignals(state, ROWS)
    positions, shares = signals.covisited(1)
    assert (positions.tolist(), shares.tolist()) == ([0], [0.5])
    assert len(signals.covisited(3)[0]) == 0
    assert signals.nearness(np.array([1]), np.array([0, 2, 3])).tolist() == [0.5, 0.0, 0.0]


def test_an_empty_state_answers_for_every_position() -> None:
    signals = PositionedSignals(LiveState(), ROWS)
    assert signals.counts(NOW).shape == (len(HALF_LIVES), 4)
    assert signals.totals().tolist() == [0] * 4
    assert signals.newest == -np.inf
