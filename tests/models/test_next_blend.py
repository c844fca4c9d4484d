"""The blend of the next track: what it sees, that it learns, and that it always has an answer."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.contracts import History, NextTrackRecommender
from models.data.sessions import Sessions, split_newest
from models.evaluation.next_item import judge
from models.fit_next_blend import (
    choices_of,
    fit_next_blend,
    gained_by,
    is_worth_asking,
    learn_ranker,
    rankers_of_others,
    unlearned,
    views_of,
)
from models.next_blend import NextBlend
from models.next_recipes import COUNTED, LOADS, RIVALS, SERVED, fit_next_recipes
from models.retrieval.next_track.answers import UNKNOWN_LISTENING, Heard
from models.retrieval.next_track.expected_listening import COMPONENTS
from tests.models.retrieval.next_track.test_attention import drawn
from tests.next_track_toys import N_TRACKS, NEVER_HEARD, RING_A, RING_B, after, ring_sessions, sessions_of


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return fit_next_recipes(ring_sessions(900), seed=0)


def test_the_recipes_come_in_the_order_in_which_they_are_built(fitted: dict[str, Any]) -> None:
    assert list(fitted) == [*COUNTED, SERVED]
    assert set(RIVALS) < set(LOADS)
    assert fitted[SERVED].chosen["hidden"] in (0, 16, 32)


def test_it_keeps_the_protocol(fitted: dict[str, Any]) -> None:
    blend = fitted[SERVED]
    assert isinstance(blend, NextTrackRecommender)
    found = blend.next(after(3, 4, 5, limit=8, excluded=(6, 7)))
    assert len(set(found.positions.tolist())) == 8
    assert not {6, 7} & set(found.positions.tolist())
    assert set(found.positions.tolist()) <= set(RING_A)
    assert (np.diff(found.scores) <= 0).all()
    assert found.listening.tolist() == [UNKNOWN_LISTENING] * 8


def test_it_learns_what_comes_next(fitted: dict[str, Any]) -> None:
    """As good as the best of those it blends, and far better than popularity."""
    prefixes = ring_sessions(60, seed=5).prefixes()
    found = {name: judge(recommender, prefixes).reciprocal_rank.mean for name, recommender in fitted.items()}
    assert found[SERVED] > 0.97 * max(found[name] for name in COUNTED)
    assert found[SERVED] > 3 * found["popular_tracks"]


def test_what_another_player_played_in_vain_is_not_learned() -> None:
    """It plays each track of a ring, and after every one a track that is broken off."""
    rings = ring_sessions(400)
    vain = [np.stack([part, np.full(len(part), NEVER_HEARD)], 1).ravel().tolist() for part in _parts(rings)]
    fractions = [[0.9, 0.05] * (len(part) // 2) for part in vain]
    blend = fit_next_recipes(sessions_of(*vain, fractions=fractions), seed=0)[SERVED]
    found = blend.next(after(3, NEVER_HEARD, 4, limit=30, fractions=[0.9, 0.05, 0.9])).positions.tolist()
    assert found[0] == 5
    assert NEVER_HEARD not in found


def _parts(sessions: Sessions) -> list[np.ndarray]:
    return [sessions.tracks[first:end] for first, end in pairwise(sessions.bounds.tolist())]


def heard_by_parity(count: int = 600) -> Sessions:
    """Every other track is heard out, those between them little more than half."""
    rings = ring_sessions(count)
    return replace(rings, fractions=np.where(rings.tracks % 2, 0.55, 0.95).astype(np.float32))


def test_how_long_a_track_is_heard_is_foretold_without_self_attention() -> None:
    blend = fit_next_recipes(heard_by_parity(), seed=0)[SERVED]
    assert "track" in blend.chosen["listening"]
    found = blend.next(after(3, 4, limit=N_TRACKS, fractions=[0.9, 0.9]))
    expected = dict(zip(found.positions.tolist(), found.listening.tolist(), strict=True))
    assert min(expected[track] for track in RING_A if track % 2 == 0) > 0.8
    assert max(expected[track] for track in RING_A if track % 2) < 0.7


def test_expected_listening_is_believed_only_where_it_proved_right() -> None:
    """Of sessions that it has not seen: here fractions are nothing but chance."""
    rings = ring_sessions(600)
    drawn_lots = np.random.default_rng(0).random(len(rings.tracks)).astype(np.float32)
    blend = fit_next_recipes(replace(rings, fractions=drawn_lots), seed=0)[SERVED]
    assert blend.listening is None
    assert list(blend.chosen["listening"]) == ["mean"]
    found = blend.next(after(3, 4, limit=3, fractions=[0.9, 0.9])).listening
    assert found.tolist() == [UNKNOWN_LISTENING] * 3


def test_self_attention_is_no_part_of_it_where_it_is_wrong() -> None:
    guess = drawn(layers=1)
    wrong = np.random.default_rng(0).normal(size=N_TRACKS).astype(np.float32)
    attention = replace(guess, usual_listening=wrong, listening=np.zeros_like(guess.listening))

    def fit(part: Sessions) -> dict[str, Any]:
        return {name: fit_one(part) for name, fit_one in COUNTED.items()} | {"session_attention": attention}

    blend = fit_next_blend(heard_by_parity(), fit, seed=0)
    assert blend.listening is not None
    assert blend.listening.weights[COMPONENTS.index("track")] > 0
    assert blend.listening.weights[COMPONENTS.index("attention")] == 0


def test_self_attention_is_believed_where_it_foretells_what_nobody_else_can() -> None:
    """Fractions are chance until the newest tenth, and there go by whether a track's number is even."""
    sessions = heard_by_parity()
    newest = sessions.of_listen >= 540
    lots = np.random.default_rng(0).uniform(0.5, 1, len(sessions.tracks)).astype(np.float32)
    sessions = replace(sessions, fractions=np.where(newest, sessions.fractions, lots))
    guess = drawn(layers=1)
    right = np.where(np.arange(N_TRACKS) % 2, 0.2, 2.9).astype(np.float32)
    attention = replace(guess, usual_listening=right, listening=np.zeros_like(guess.listening))

    def fit(part: Sessions) -> dict[str, Any]:
        return {name: fit_one(part) for name, fit_one in COUNTED.items()} | {"session_attention": attention}

    blend = fit_next_blend(sessions, fit, seed=0)
    assert blend.listening is not None
    assert blend.listening.weights[COMPONENTS.index("attention")] > 0
    found = blend.next(after(3, 4, limit=10, fractions=[0.9, 0.9]))
    is_even = found.positions % 2 == 0
    assert found.listening[is_even].min() > 0.8
    assert found.listening[~is_even].max() < 0.7


def test_rankers_are_judged_by_sessions_that_they_never_met() -> None:
    earlier, newest = split_newest(ring_sessions(600), 0.2)
    fitted = {name: fit(earlier) for name, fit in COUNTED.items()}
    blend = NextBlend.of(fitted, unlearned(fitted), {"hidden": 0})
    prefixes = newest.prefixes()
    views = views_of(blend, prefixes)
    rankers = list(rankers_of_others(blend, prefixes, views, seed=0))
    # The first session's block answers otherwise: whoever learned from it is another, who is asked of it is not.
    own = [ranker is rankers[0] for ranker in rankers]
    otherwise = [(seen, 0 if is_own else place) for is_own, (seen, place) in zip(own, views, strict=True)]
    again = list(rankers_of_others(blend, prefixes, otherwise, seed=0))
    is_same = [np.array_equal(new.wide, old.wide) for new, old in zip(again, rankers, strict=True) if new and old]
    assert is_same == own
    session = prefixes.session_of
    assert len({id(ranker) for ranker in rankers}) == 3 < len(set(session[own].tolist()))
    assert not set(session[own].tolist()) & set(session[~np.array(own)].tolist())


def test_the_past_is_asked_where_more_than_chance_speaks_for_it() -> None:
    without, sessions = np.full((400, 2), 0.2), np.arange(400) // 10
    lucky = without.copy()
    lucky[:20] = 1
    assert not is_worth_asking(lucky, without, sessions), "two sessions of forty"
    steady = without + np.random.default_rng(0).normal(0.02, 0.05, (400, 2))
    assert is_worth_asking(steady, without, sessions)
    assert not is_worth_asking(without + 0.001, without, sessions), "too little to ask for"


def of_two_users(count: int) -> Sessions:
    """Whoever heard ring A before hears ring A, but a session's first track says nothing: it is the same for all."""
    rings = ring_sessions(count)
    users = np.where(rings.tracks[rings.bounds[:-1]] < 20, 0, 1).astype(np.int32)
    tracks = rings.tracks.copy()
    tracks[rings.bounds[:-1]] = NEVER_HEARD
    return replace(rings, tracks=tracks, users=users)


def test_what_a_user_heard_before_says_what_comes_next() -> None:
    blend = fit_next_recipes(of_two_users(600), seed=0)[SERVED]
    assert blend.chosen["asks_past"]
    # What a past says is kept: it must not be taken for another's, nor for the same tracks liked less.
    for ring in (RING_A, RING_B, RING_A):
        past = np.array(ring[:8], np.int32)
        history = History(past, np.ones(8, np.float32), np.ones(8, np.int8), np.zeros(8))
        found = blend.next(replace(after(NEVER_HEARD, limit=5), history=history))
        assert set(found.positions.tolist()) <= set(ring)
        disliked = replace(history, weights=np.full(8, -1, np.float32))
        other = blend.next(replace(after(NEVER_HEARD, limit=5), history=disliked))
        assert other.scores.tolist() != found.scores.tolist()
    # A release that was replaced has to go at once: the collector of cycles passes over what is there at the start.
    still_there = weakref.ref(blend)
    gc.disable()
    try:
        del blend
        assert still_there() is None
    finally:
        gc.enable()


def test_a_past_that_says_nothing_is_not_asked() -> None:
    sessions = ring_sessions(600)
    users = np.random.default_rng(0).integers(20, size=len(sessions)).astype(np.int32)
    blend = fit_next_recipes(replace(sessions, users=users), seed=0)[SERVED]
    assert not blend.asks_past
    assert "with_past" in blend.chosen


def test_popular_tracks_fill_up_until_nothing_is_left(fitted: dict[str, Any]) -> None:
    first = fitted[SERVED].next(after(limit=5))
    assert first.positions.tolist() == fitted["popular_tracks"].next(after(limit=5)).positions.tolist()
    everything = fitted[SERVED].next(after(3, 4, limit=100, excluded=(0, 1)))
    assert sorted(everything.positions.tolist()) == list(range(2, N_TRACKS))
    assert (np.diff(everything.scores) <= 0).all()


def test_filters_hold_for_what_fills_up_too(fitted: dict[str, Any]) -> None:
    eligible = np.zeros(N_TRACKS, np.bool_)
    eligible[[2, 30, 38]] = True
    found = fitted[SERVED].next(replace(after(3, 4, limit=10), eligible=eligible))
    assert sorted(found.positions.tolist()) == [2, 30, 38]


def test_it_comes_back_from_its_parts(fitted: dict[str, Any]) -> None:
    built: dict[str, Any] = {}
    for name, recommender in fitted.items():
        built[name] = LOADS[name](*recommender.parts(), built)
    for left, right in zip(built[SERVED].next(after(3, 4)), fitted[SERVED].next(after(3, 4)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_self_attention_is_one_more_voice(fitted: dict[str, Any]) -> None:
    attention = drawn()
    together = {name: fitted[name] for name in COUNTED} | {attention.name: attention}
    blend = NextBlend.of(together, unlearned(together), {})
    heard = Heard(np.array([3, 4], np.int32), np.full(2, np.nan, np.float32))
    seen, without = blend.seen(heard), NextBlend.of(fitted, unlearned(fitted), {}).seen(heard)
    assert len(seen.features) == len(without.features) + 1
    scores = attention.vectors[seen.positions] @ attention.direction(attention.state(heard))
    np.testing.assert_allclose(seen.features[6], scores - scores.max(), atol=1e-5)


def test_choices_put_what_followed_first() -> None:
    earlier, newest = split_newest(ring_sessions(300), 0.1)
    fitted = {name: fit(earlier) for name, fit in COUNTED.items()}
    views = views_of(NextBlend.of(fitted, unlearned(fitted), {}), newest.prefixes())
    seen, place = next(view for view in views if view[1] is not None)
    choices = choices_of([(seen, place)], seed=0)
    np.testing.assert_array_equal(choices.features[0, :, 0], seen.features[:, place])
    assert choices.offered[0].sum() == len(seen.positions)


def test_what_nobody_named_counts_as_missed() -> None:
    earlier, newest = split_newest(ring_sessions(300), 0.1)
    fitted = {name: fit(earlier) for name, fit in COUNTED.items()}
    ranker = unlearned(fitted)
    views = views_of(NextBlend.of(fitted, ranker, {}), newest.prefixes())
    hit_rate, reciprocal = gained_by(ranker, views).mean(axis=0)
    assert 0.9 < hit_rate <= 1
    with_missed = gained_by(ranker, [*views, *[(seen, None) for seen, _ in views]]).mean(axis=0)
    assert with_missed[0] == pytest.approx(hit_rate / 2)
    assert 0 < reciprocal < hit_rate


def test_a_handful_of_sessions_is_too_few_to_learn_from() -> None:
    sessions = sessions_of([1, 2, 3], [1, 2], [2, 3], [4, 5], [1, 2, 3])
    fitted = {name: fit(sessions) for name, fit in COUNTED.items()}
    ranker, chosen = learn_ranker(fitted, sessions)
    assert "hidden" not in chosen
    assert NextBlend.of(fitted, ranker, chosen).next(after(1, limit=1)).positions.tolist() == [2]
