"""Ranking candidates alone gives what ranking every item gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.contracts import History, Mask, Query, unwatched
from models.fit_blend import unlearned
from models.live.changes import DayLedger
from models.live.state import LiveState
from models.ranking.features import Surprise
from models.retrieval.content_profile import fit_content_profile
from models.retrieval.dense import DenseRecommender
from models.retrieval.live_counts import ExpectedCounts, LiveCounts
from models.two_stage import Blend

NOW = 1_700_000_000.0
N_ITEMS, N_USERS, GROUPS = 6_000, 800, 40


def blend_and_queries() -> tuple[Blend, list[Query]]:
    """Users of forty groups meet items of their own group twice of three times, the popular ones more often."""
    rng = np.random.default_rng(0)
    groups = rng.integers(GROUPS, size=N_ITEMS)
    popular = 1 / np.arange(1, N_ITEMS + 1) ** 0.7
    popular = popular[rng.permutation(N_ITEMS)]
    content = (np.eye(GROUPS)[groups] + rng.normal(0, 0.15, (N_ITEMS, GROUPS))).astype(np.float32)
    met = []
    for user in range(N_USERS):
        own = popular * np.where(groups == user % GROUPS, 20.0 * GROUPS / 10, 1.0)
        met += [(user, int(item)) for item in rng.choice(N_ITEMS, 15, replace=False, p=own / own.sum())]
    mixed = [met[place] for place in rng.permutation(len(met)).tolist()]
    users, items = (np.array(column, np.int32) for column in zip(*mixed, strict=True))
    times = np.sort(NOW - rng.exponential(20 * 86_400, len(users)))
    live = LiveState(n_items=N_ITEMS)
    live.fold(DayLedger().changes(users, items, np.ones(len(users)), times))
    profile = fit_content_profile(content, progress=unwatched)
    histories = [_history(items[users == user], times[users == user]) for user in range(N_USERS)]
    sample = np.stack([profile.scores(Query(limit=0, at=NOW, history=history)) for history in histories[:200]])
    counts = LiveCounts(
        np.zeros((7, N_ITEMS), np.float32), ExpectedCounts(np.zeros(GROUPS + 1, np.float32)),
        np.full(N_ITEMS, 0.3, np.float32), 2,
    )  # fmt: skip
    blend = Blend(counts, {profile.name: profile}, {profile.name: Surprise.of(sample)}, unlearned(1), {})
    return blend, [
        Query(limit=50, at=NOW + 60, history=history, excluded=history.positions, live=live)
        for history in histories[:150]
    ]


def _history(
    items: np.ndarray[tuple[int], np.dtype[np.int32]], times: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> History:
    order, n = np.argsort(times), len(items)
    return History(items[order], np.ones(n, np.float32), np.ones(n, np.int8), times[order])


@pytest.fixture(scope="module")
def asked() -> tuple[Blend, list[Query]]:
    return blend_and_queries()


def test_the_candidates_hold_the_best_of_all(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = asked
    ten, fifty, candidates = [], [], []
    for query in queries:
        shown = blend.recommend(query).positions
        view = blend._kept.view_of(query)
        assert view is not None
        candidates.append(len(view.positions))
        best = DenseRecommender.recommend(blend, query).positions
        ten.append(shown[:10].tolist() == best[:10].tolist())
        fifty.append(np.isin(best, shown).mean())
    assert np.mean(candidates) < N_ITEMS / 2
    assert np.mean(ten) > 0.98
    assert np.mean(fifty) > 0.999


@pytest.mark.parametrize("left", [30, 300, 3_000])
def test_filters_leave_the_best_of_what_they_leave(asked: tuple[Blend, list[Query]], left: int) -> None:
    blend, queries = asked
    eligible: Mask = np.zeros(N_ITEMS, np.bool_)
    eligible[np.random.default_rng(left).permutation(N_ITEMS)[:left]] = True
    for query in queries[:20]:
        filtered = replace(query, eligible=eligible)
        shown, best = blend.recommend(filtered).positions, DenseRecommender.recommend(blend, filtered).positions
        assert eligible[shown].all()
        assert np.isin(best[:10], shown).mean() >= 0.9
        if left < 300:
            assert shown.tolist() == best.tolist()


def test_what_is_kept_of_a_user_is_not_taken_for_other_filters(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = asked
    before = blend.recommend(queries[0]).positions
    without = replace(queries[0], excluded=np.concatenate([queries[0].excluded, before[:3]]))
    assert blend.recommend(without).positions[:20].tolist() == before[3:23].tolist()
    assert blend.recommend(queries[0]).positions.tolist() == before.tolist()
