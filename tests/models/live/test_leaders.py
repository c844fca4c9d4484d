"""What leads, and the counters of a few items: the same as a look at all of them says, whatever came in between."""

from __future__ import annotations

import numpy as np
import pytest

from models.live import leaders
from models.live.changes import Changes, DayLedger
from models.live.state import LiveState

NOW = 1_700_000_000.0
N_ITEMS = 400
MOST = 20


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "MOST", MOST)
    monkeypatch.setattr(leaders, "_MOST_MET", 30)


def test_whatever_leads_is_among_those_told_and_counted_as_all_are() -> None:
    rng, state, at = np.random.default_rng(0), LiveState(n_items=N_ITEMS), NOW
    for batch in (2_000, *[1] * 60, 300, *[3] * 40):
        at += 3_000
        items = (rng.zipf(1.4, batch) % N_ITEMS).astype(np.int32)
        times = at - rng.exponential(9_000, batch)
        state.fold(Changes(items, np.ones(batch), times))
        chosen, since = state.leading()
        assert np.all(np.diff(chosen) > 0)
        assert not np.isin(since, chosen).any()
        assert len(since) <= 31
        told, all_counts = {*chosen.tolist(), *since.tolist()}, state.counts(at)
        for row in (*all_counts, state.totals()):
            twentieth = np.sort(row)[-MOST]
            assert set(np.flatnonzero(row > twentieth).tolist()) <= told
        positions = rng.permutation(N_ITEMS + 9)[:50]
        counts, totals, masses, total = state.counted(positions, at, N_ITEMS - 100)
        known = positions < N_ITEMS
        np.testing.assert_allclose(counts[:, known], all_counts[:, positions[known]], rtol=1e-6)
        np.testing.assert_array_equal(totals[known], state.totals()[positions[known]])
        assert not counts[:, ~known].any()
        np.testing.assert_allclose(masses, all_counts[:, : N_ITEMS - 100].sum(axis=1), rtol=1e-4)
        assert total == pytest.approx(float(state.totals()[: N_ITEMS - 100].sum()))


def test_the_same_array_as_long_as_no_others_were_chosen() -> None:
    state, ledger = LiveState(n_items=N_ITEMS), DayLedger()

    def met(item: int, user: int) -> None:
        one = np.array([user], np.int32), np.array([item], np.int32), np.ones(1), np.array([NOW + user])
        state.fold(ledger.changes(*one))

    for user in range(40):
        met(user, user)
    chosen, _ = state.leading()
    met(300, 41)
    again, since = state.leading()
    assert again is chosen
    assert since.tolist() == [300]
    state.restore_items(0, state.item_parts(0, N_ITEMS))
    assert 300 in state.leading().chosen
