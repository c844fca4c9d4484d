"""Co-visits that are kept are those that would be counted now."""

from __future__ import annotations

import numpy as np
import pytest

from models.live import covisits
from models.live.changes import Changes, DayLedger
from models.live.state import LiveState

START = 1_700_000_000.0
N_USERS, N_ITEMS = 40, 12


@pytest.mark.parametrize("most_kept", [3, 4_096])
@pytest.mark.parametrize("size", [1, 3, 40])
def test_what_is_kept_is_what_a_state_of_the_same_parts_counts(
    size: int, most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One visit at a time, some, and as many as are merged at once; newcomers have higher and higher numbers."""
    monkeypatch.setattr(covisits, "MOST_KEPT", most_kept)
    rng, state, ledger = np.random.default_rng(size), LiveState(n_items=N_ITEMS), DayLedger()
    for turn in range(80):
        users = rng.integers(0, N_USERS + 3 * turn, size).astype(np.int32)
        items = rng.integers(0, N_ITEMS, size).astype(np.int32)
        state.fold(ledger.changes(users, items, np.ones(size), np.full(size, START + turn)))
        if turn % 30 == 29:
            state.fold(Changes(forgotten=users[:1]))
        asked = rng.integers(0, N_ITEMS + 2, 5).tolist()
        anew = LiveState.from_parts(state.parts())
        for item, (found, shares) in zip(asked, state.covisited_each(asked), strict=True):
            expected, their_shares = anew.covisited(item)
            assert found.tolist() == expected.tolist()
            assert shares.tolist() == their_shares.tolist()


@pytest.mark.parametrize("n", [1, 10, 40])
def test_as_long_as_no_visitor_goes_anywhere_they_are_the_same_arrays(n: int) -> None:
    state, ledger = LiveState(n_items=100), DayLedger()

    def visit(at: float, users: list[int], items: list[int]) -> None:
        k = len(users)
        visits = np.array(users, np.int32), np.array(items, np.int32), np.ones(k), np.full(k, START + at)
        state.fold(ledger.changes(*visits))

    others = list(range(n)), list(range(50, 50 + n))
    visit(0, [5_000, 5_000, 0], [1, 2, 2])
    first = state.covisited_each([1, 2, 90])
    visit(1, *others)
    second = state.covisited_each([1, 2, 90])
    assert [a[0] is b[0] for a, b in zip(first, second, strict=True)] == [True, False, True]
    visit(2, [5_000], [3])
    third = state.covisited_each([1, 2, 90])
    assert [a[0] is b[0] for a, b in zip(second, third, strict=True)] == [False, False, True]
    assert (first[0][0].tolist(), third[0][0].tolist()) == ([2], [2, 3])
    visit(3, others[0][1:], others[1][1:])
    assert state.covisited(1)[0] is third[0][0]
