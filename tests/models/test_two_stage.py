"""The blend: the contract untaught and taught, what it tells of itself, and what live signals do to it."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Arrays, Parameters, Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset
from models.fit_blend import unlearned
from models.live.state import DayLedger
from models.live.stream import live_state_of
from models.ranking.features import SHARES
from models.recipes import RECIPES, FitContext
from models.two_stage import Blend
from tests.recommender_contract import (
    FAN_OF_A,
    GROUP_A,
    LIVE,
    N_ITEMS,
    NEW_ITEMS,
    NOW,
    RecommenderContract,
    ask,
    live_visits,
    toy_content,
    toy_dataset,
)

PARTS = RECIPES["blend"].needs


def fit(dataset: Dataset, content: Scores) -> Blend:
    context = FitContext(0, unwatched, content, {})
    fitted = {name: RECIPES[name].fit(dataset, context) for name in PARTS}
    blend = RECIPES["blend"].fit(dataset, replace(context, fitted=fitted))
    assert isinstance(blend, Blend)
    return blend


class TestBlend(RecommenderContract):
    """As it learns from the few hundred choices of the toy data."""

    reason_codes = frozenset({"popular", "live", "similar_to_liked", "taste"})
    knows_new_items = True
    answers_everyone = True

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return fit(dataset, content)

    def rebuild(self, fitted: Recommender, parameters: Parameters, arrays: Arrays) -> Recommender:
        assert isinstance(fitted, Blend)
        sources = {"live_counts": fitted.live_counts, **fitted.sources}
        as_fitted = {name: part.with_new_items(np.empty((0, 4), np.float32)) for name, part in sources.items()}
        return Blend.from_parts(parameters, arrays, as_fitted)


class TestUntaughtBlend(TestBlend):
    """As it is where there are too few choices."""

    def fit(self, dataset: Dataset, content: Scores) -> Recommender:
        return untaught(fit(dataset, content))


def untaught(blend: Blend) -> Blend:
    return replace(blend, ranker=unlearned(len(blend.sources)), chosen={})


@pytest.fixture(scope="module")
def blend() -> Blend:
    return fit(toy_dataset(), toy_content())


QUERY = ask(FAN_OF_A, excluded=np.array(FAN_OF_A, np.int32), live=LIVE)


def test_the_features_are_what_their_names_say(blend: Blend) -> None:
    view = blend.view(QUERY)
    assert view.features.shape == (len(blend.feature_names) + 1, N_ITEMS)
    assert (view.features[-1] == 1).all()
    assert view.features.dtype == np.float32
    rows = dict(zip(blend.feature_names, view.features[:-1], strict=True))
    assert len(rows) == len(blend.feature_names)
    shares = blend.live_counts.log_shares(QUERY)
    np.testing.assert_array_equal(rows["live 24 h"], shares[2])
    np.testing.assert_array_equal(rows["all time"], shares[-1])
    for name, source in blend.sources.items():
        np.testing.assert_array_equal(rows[name], blend.surprises[name](source.scores(QUERY)))


def test_a_new_user_gets_live_counts_of_all_half_lives_while_nothing_is_learned(blend: Blend) -> None:
    for live, code in ((None, "popular"), (LIVE, "live")):
        query = ask(limit=N_ITEMS, live=live)
        expected = np.argsort(-blend.live_counts.log_shares(query)[:-1].mean(axis=0))
        assert untaught(blend).recommend(query).positions.tolist() == expected.tolist()
        assert {reason.code for reason in blend.reasons(query, expected[:5].astype(np.int32))} == {code}


def test_what_people_turn_to_now_rises(blend: Blend) -> None:
    """Twenty people come to item 9 within minutes."""
    query, rush = replace(QUERY, limit=N_ITEMS), live_state_of(toy_dataset())
    n = 20
    rush.fold(
        DayLedger().changes(
            np.arange(1_000, 1_000 + n, dtype=np.int32), np.full(n, 9, np.int32), np.ones(n), np.full(n, NOW - 60)
        )
    )
    # What a crowd is worth is learned; in the toy data nobody follows one.
    speaker = untaught(blend)
    before, after = (speaker.recommend(replace(query, live=live)).positions.tolist() for live in (LIVE, rush))
    assert after.index(9) == 0 < before.index(9)


def test_contributions_are_each_sources_own_scores_and_ranks(blend: Blend) -> None:
    positions = np.array([1, FAN_OF_A[0], 20], np.int32)
    found = blend.contributions(QUERY, positions)
    assert list(found) == [*PARTS, "blend"]
    for name, source in {"live_counts": blend.live_counts, **blend.sources, "blend": blend}.items():
        np.testing.assert_array_equal(found[name].scores, source.scores(QUERY)[positions])
        ranking = source.recommend(replace(QUERY, limit=N_ITEMS)).positions.tolist()
        assert found[name].ranks.tolist() == [
            ranking.index(position) + 1 if position in ranking else 0 for position in positions.tolist()
        ]


def test_excluded_items_have_no_rank(blend: Blend) -> None:
    found = blend.contributions(QUERY, np.array(FAN_OF_A, np.int32))
    assert all(not contribution.ranks.any() for contribution in found.values())


def led_by_co_visits(blend: Blend) -> Blend:
    """The same sources; the ranker looks at co-visits alone."""
    plain = untaught(blend)
    wide = np.zeros_like(plain.ranker.wide)
    wide[len(SHARES)] = 1
    return replace(plain, ranker=replace(plain.ranker, wide=wide))


def test_the_reason_is_the_liked_item_that_led_there(blend: Blend) -> None:
    """Item 16 was met by visitors of item 3, and item 17 by those of a disliked one."""
    live = live_visits((3, 16), (3, 16), (0, 8), (5, 17))
    query = ask((0, 3, 5), live=live)
    disliked = replace(query.history, signs=np.array([1, 1, -1], np.int8))
    reasons = led_by_co_visits(blend).reasons(replace(query, history=disliked), np.array([16, 8, 17], np.int32))
    assert [(reason.code, reason.seed) for reason in reasons] == [
        ("similar_to_liked", 3), ("similar_to_liked", 0), ("live", None),
    ]  # fmt: skip


def test_nobody_is_led_where_nobody_counts(blend: Blend) -> None:
    reasons = led_by_co_visits(blend).reasons(ask((0, 3)), np.arange(N_ITEMS, dtype=np.int32))
    assert {reason.code for reason in reasons} == {"popular"}


def test_reasons_are_those_of_the_scores_that_were_asked_for_before(blend: Blend) -> None:
    """The live signals go on between the two; the scores of the next question know it."""
    led, live = led_by_co_visits(blend), live_visits((3, 16), (0, 8))
    query, positions = ask((0, 3), live=live), np.array([16, 8], np.int32)
    before, told = led.scores(query), led.reasons(query, positions)
    live.become(live_visits((0, 16), (3, 8)))
    assert led.reasons(replace(query, limit=3), positions) == told
    assert [reason.seed for reason in told] == [3, 0]
    assert (led.scores(query) != before).any()
    assert [reason.seed for reason in led.reasons(query, positions)] == [0, 3]


@pytest.mark.parametrize(
    "other",
    [
        ask((0, 3), live=live_visits((3, 8), (0, 16))),
        replace(QUERY, at=NOW + 1),
        ask((3, 0), live=LIVE),
        replace(QUERY, live=None),
        replace(QUERY, preferred_categories=("b",)),
    ],
    ids=["other signals", "another time", "another past", "nobody counts", "other wishes"],
)
def test_reasons_for_one_question_are_never_those_of_another(blend: Blend, other: Query) -> None:
    positions = np.arange(N_ITEMS, dtype=np.int32)
    alone = replace(blend).reasons(other, positions)
    blend.scores(QUERY)
    assert blend.reasons(other, positions) == alone


def test_threads_that_ask_at_once_get_their_own_reasons(blend: Blend) -> None:
    positions = np.arange(N_ITEMS, dtype=np.int32)
    queries = [ask(liked, live=live) for liked in ((0, 3), (13, 15), (7, 20)) for live in (None, LIVE)]
    expected = [replace(blend).reasons(query, positions) for query in queries]
    wrong: list[int] = []

    def ask_often(index: int) -> None:
        for _ in range(40):
            blend.scores(queries[index])
            if blend.reasons(queries[index], positions) != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=ask_often, args=(index,)) for index in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def cut(n_items: int, n_interactions: int) -> tuple[Dataset, Scores]:
    """The toy data's first items and the first interactions with them."""
    whole = toy_dataset()
    items = replace(
        whole.items,
        **{
            name: getattr(whole.items, name)[:n_items]
            for name in ("categories", "tags", "texts", "creators", "kinds", "published", "features")
        },
    )
    here = np.flatnonzero(whole.interactions.items < n_items)[:n_interactions]
    return Dataset(whole.interactions.take(here), items, whole.n_users), toy_content()[:n_items]


@pytest.mark.parametrize(
    ("n_items", "n_interactions"),
    [(0, 0), (1, 0), (1, 1), (1, 40), (2, 60), (N_ITEMS, 0), (N_ITEMS, 1), (N_ITEMS, 3)],
)
def test_catalogues_and_logs_of_next_to_nothing(n_items: int, n_interactions: int) -> None:
    blend = fit(*cut(n_items, n_interactions))
    for speaker in (blend, blend.with_new_items(NEW_ITEMS)):
        n = speaker.n_items
        for live in (None, LIVE, live_visits((0, 40))):
            for liked in ((), (0,), (0, 3, 9_000)):
                query = ask(liked, limit=1_000, live=live, excluded=np.array(liked, np.int32))
                left = [position for position in range(n) if position not in liked]
                answer = speaker.recommend(query)
                assert sorted(answer.positions.tolist()) == left
                assert np.isfinite(answer.scores).all()
                assert len(speaker.reasons(query, answer.positions)) == len(left)
                assert len(speaker.contributions(query, answer.positions)["blend"].ranks) == len(left)


def test_it_stands_on_live_counts(blend: Blend) -> None:
    parameters, arrays = blend.parts()
    with pytest.raises(KeyError, match="live_counts"):
        Blend.from_parts(parameters, arrays, {})


def test_weights_are_named_by_feature_once_they_were_learned(blend: Blend) -> None:
    assert untaught(blend).weights() == {}
    assert list(blend.weights()) == list(blend.feature_names)


def test_group_a_is_what_fans_of_a_are_shown_for_their_taste(blend: Blend) -> None:
    answer = blend.recommend(replace(QUERY, limit=3))
    codes = {reason.code for reason in blend.reasons(QUERY, answer.positions)}
    assert set(answer.positions.tolist()) <= set(GROUP_A) | {N_ITEMS - 1}
    assert codes & {"taste", "similar_to_liked"}


def test_events_of_the_future_and_of_the_past_are_borne(blend: Blend) -> None:
    """A question as of before the data, and one of ten years later."""
    for at in (0.0, NOW - 1e6, NOW + 10 * 365 * 86_400):
        assert np.isfinite(blend.scores(replace(QUERY, at=at))).all()
