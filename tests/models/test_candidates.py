"""Ranking candidates alone gives what ranking every item gives."""

from __future__ import annotations

import gc
from dataclasses import replace
from weakref import ref

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


def test_a_filters_mask_is_not_kept_for_its_users(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = asked
    masks = []
    for query in queries[:20]:
        mask = np.ones(N_ITEMS, np.bool_)
        blend.recommend(replace(query, eligible=mask))
        masks.append(ref(mask))
    del mask
    # The last question is kept as a whole, for its reasons.
    blend.recommend(queries[0])
    gc.collect()
    assert all(mask() is None for mask in masks)


def test_a_filter_does_not_displace_what_all_questions_without_one_share(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = asked
    shared = np.ones(N_ITEMS, np.bool_)
    query = replace(queries[0], eligible=shared)
    blend.recommend(query)
    places = blend._allowed(query, blend._found(query))
    for _ in range(2):
        blend.recommend(replace(query, eligible=shared.copy()))
        assert blend._allowed(query, blend._found(query)) is places


def test_what_is_shared_anew_takes_the_place_of_what_was(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = asked
    for _ in range(3):
        query = replace(queries[0], eligible=np.ones(N_ITEMS, np.bool_))
        blend.recommend(query)
        blend.recommend(query)
        assert blend._allowed(query, blend._found(query)) is blend._allowed(query, blend._found(query))


def test_what_is_kept_of_a_user_is_not_taken_for_another_mask(asked: tuple[Blend, list[Query]]) -> None:
    blend, query = replace(asked[0]), asked[1][0]
    before = blend.recommend(query).positions.tolist()
    first: Mask = np.ones(N_ITEMS, np.bool_)
    first[before[:3]] = False
    second = np.ones(N_ITEMS, np.bool_)
    second[before[5:9]] = False
    lefts = (first, before[3:23]), (second, [*before[:5], *before[9:24]]), (None, before[:20]), (first, before[3:23])
    for mask, left in lefts:
        assert blend.recommend(replace(query, eligible=mask)).positions[:20].tolist() == left


def test_what_is_met_between_two_questions_of_a_user_becomes_a_candidate(asked: tuple[Blend, list[Query]]) -> None:
    """As if the blend, which keeps the user's candidates, had never been asked before."""
    blend, queries = asked
    assert isinstance(queries[0].live, LiveState)
    live, ledger, blend = LiveState.from_parts(queries[0].live.parts()), DayLedger(), replace(blend)
    query = replace(queries[0], live=live, eligible=np.ones(N_ITEMS, np.bool_))
    shown = blend.recommend(query).positions
    view = blend._kept.view_of(query)
    assert view is not None
    is_led = np.isin(view.positions, live.leading().chosen)
    unknown = np.setdiff1d(np.arange(N_ITEMS), [*view.positions, *query.excluded])
    risen = [*unknown[:3], view.positions[~is_led][0], unknown[3]]
    for turn, item in enumerate(risen):
        chosen = live.leading().chosen
        users = np.arange(20, dtype=np.int32) + N_USERS + 20 * turn
        live.fold(ledger.changes(users, np.full(20, item, np.int32), np.ones(20), np.full(20, NOW + turn)))
        answer, fresh = blend.recommend(query), replace(blend)
        expected = fresh.recommend(query)
        assert live.leading().chosen is chosen
        assert answer.positions.tolist() == expected.positions.tolist()
        np.testing.assert_allclose(answer.scores, expected.scores, rtol=1e-5)
        assert blend.reasons(query, answer.positions) == fresh.reasons(query, answer.positions)
    assert set(risen) <= {*answer.positions.tolist()}
    assert not set(unknown[:4]) & {*shown.tolist()}


def test_an_item_that_is_newer_than_the_blend_leads_nobody_astray(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = asked
    assert isinstance(queries[0].live, LiveState)
    live, blend = LiveState.from_parts(queries[0].live.parts()), replace(blend)
    query = replace(queries[0], live=live)
    blend.recommend(query)
    newcomers = np.arange(N_USERS, N_USERS + 20, dtype=np.int32)
    live.fold(DayLedger().changes(newcomers, np.full(20, N_ITEMS + 3, np.int32), np.ones(20), np.full(20, NOW)))
    assert N_ITEMS + 3 in live.leading().since
    answer = blend.recommend(query)
    assert len(answer.positions) == query.limit
    assert answer.positions.max() < N_ITEMS
