"""Counters, neighbours and EASE: one contract for all, then what each of them counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.contracts import NextTrackRecommender
from models.data.sessions import Sessions
from models.retrieval.next_track.answers import Heard
from models.retrieval.next_track.linked_tracks import LinkedTracks
from models.retrieval.next_track.popular_tracks import PopularTracks, fit_popular_tracks
from models.retrieval.next_track.recency_ease import ease_weights, fit_recency_ease
from models.retrieval.next_track.session_knn import Nearness, SessionKnn, fit_session_knn
from models.retrieval.next_track.transitions import (
    ONE_WAY,
    counted,
    fit_co_listens,
    fit_transition_counter,
    transitions,
)
from tests.next_track_toys import N_TRACKS, NEVER_HEARD, RING_A, RING_B, after, ring_sessions, sessions_of

FITS: dict[str, tuple[Callable[[Sessions], Any], Any]] = {
    "transition_counter": (fit_transition_counter, LinkedTracks),
    "co_listens": (fit_co_listens, LinkedTracks),
    "recency_ease": (fit_recency_ease, LinkedTracks),
    "session_knn": (fit_session_knn, SessionKnn),
}
every = pytest.mark.parametrize("name", FITS)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return {name: fit(ring_sessions()) for name, (fit, _) in FITS.items()}


@every
def test_it_stays_in_the_ring_that_the_session_walks(fitted: dict[str, Any], name: str) -> None:
    assert set(fitted[name].next(after(3, 4, 5)).positions.tolist()) <= set(RING_A)
    assert set(fitted[name].next(after(23, 24, 25)).positions.tolist()) <= set(RING_B)


@every
def test_it_keeps_the_protocol(fitted: dict[str, Any], name: str) -> None:
    assert isinstance(fitted[name], NextTrackRecommender)
    assert fitted[name].name == name
    assert fitted[name].n_items == N_TRACKS
    found = fitted[name].next(after(3, 4, 5, limit=4))
    assert len(found.positions) == len(set(found.positions.tolist())) == 4
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.listening >= 0) & (found.listening <= 1)).all()
    assert [array.dtype for array in found] == [np.int32, np.float32, np.float32]


@every
def test_what_is_excluded_or_not_eligible_is_not_answered(fitted: dict[str, Any], name: str) -> None:
    best = fitted[name].next(after(3, 4, 5)).positions.tolist()
    others = fitted[name].next(after(3, 4, 5, excluded=(best[0], best[2]))).positions.tolist()
    assert others[:3] == [best[1], best[3], best[4]]
    eligible = np.ones(N_TRACKS, np.bool_)
    eligible[best[0]] = False
    filtered = fitted[name].next(replace(after(3, 4, 5), eligible=eligible)).positions.tolist()
    assert filtered[:4] == best[1:]


@every
def test_sessions_that_say_nothing_get_no_answer(fitted: dict[str, Any], name: str) -> None:
    for query in (after(), after(N_TRACKS + 5), after(-1), after(NEVER_HEARD)):
        assert len(fitted[name].next(query).positions) == 0


@every
def test_a_track_it_does_not_know_changes_nothing(fitted: dict[str, Any], name: str) -> None:
    plain, mixed = fitted[name].next(after(3, 4)), fitted[name].next(after(3, 4, N_TRACKS + 7))
    np.testing.assert_array_equal(plain.positions, mixed.positions)


@every
def test_what_was_skipped_loses_its_say(fitted: dict[str, Any], name: str) -> None:
    """Ring B was skipped after ring A was heard: with both heard B's tracks come first."""
    heard = fitted[name].next(after(3, 24, fractions=[1.0, 1.0]))
    skipped = fitted[name].next(after(3, 24, fractions=[1.0, 0.05]))
    assert set(heard.positions.tolist()) & set(RING_B)
    assert set(skipped.positions.tolist()) <= set(RING_A)


@every
def test_it_comes_back_from_its_parts(fitted: dict[str, Any], name: str) -> None:
    again = FITS[name][1].from_parts(*fitted[name].parts())
    for query in (after(3, 4, 5), after(30), after()):
        for left, right in zip(fitted[name].next(query), again.next(query), strict=True):
            np.testing.assert_array_equal(left, right)


@every
def test_the_order_of_two_tracks_matters(fitted: dict[str, Any], name: str) -> None:
    up, down = fitted[name].next(after(3, 8, limit=20)), fitted[name].next(after(8, 3, limit=20))
    assert up.positions.tolist() != down.positions.tolist()


def test_transitions_count_at_one_over_their_distance() -> None:
    links = transitions(sessions_of([1, 2, 3], [1, 3], n_items=4), ONE_WAY).toarray()
    wanted = np.zeros((4, 4), np.float32)
    wanted[1, 2], wanted[1, 3], wanted[2, 3] = 1, 1 / 2 + 1, 1
    np.testing.assert_allclose(links, wanted)


def test_transitions_end_with_their_session() -> None:
    assert transitions(sessions_of([1], [2], n_items=3), ONE_WAY).nnz == 0


def test_old_transitions_fade_and_backward_ones_count_less() -> None:
    sessions = sessions_of([1, 2], [1, 3], n_items=4)
    fading = counted("x", sessions, replace(ONE_WAY, half_life=1.0, dampening=0.0))
    assert fading.opinion(Heard(np.array([1], np.int32), np.array([np.nan], np.float32))).scores.tolist() == [0.5, 1.0]
    both = counted("x", sessions, replace(ONE_WAY, back=0.25, dampening=0.0))
    assert both.next(after(2)).positions.tolist() == [1]
    assert both.next(after(2)).scores.tolist() == [0.25]


def test_neighbours_continue_as_they_did() -> None:
    """By hand: one neighbour, one common track; nearer tracks count more, those before it half."""
    knn = fit_session_knn(sessions_of([5, 1, 2, 3], [9, 9]), Nearness(shortness=0, half_life=1e12))
    opinion = knn.opinion(Heard(np.array([1], np.int32), np.array([np.nan], np.float32)))
    likeness = float(np.log(2.0) ** 1.5)
    np.testing.assert_array_equal(opinion.positions, [1, 2, 3, 5])
    fallen = np.exp(-np.array([0, 1, 2, 1]) / 3) * [1, 1, 1, 0.5]
    np.testing.assert_allclose(opinion.scores, likeness * fallen, rtol=1e-5)


def test_what_stands_at_the_mean_of_what_is_in_common_does_not_stand_before_it() -> None:
    """Places 0, 1 and 5 of one neighbour are in common: their mean is 2, but for rounding."""
    knn = fit_session_knn(sessions_of([1, 2, 5, 6, 7, 3], [9, 9]), Nearness(shortness=0, half_life=1e12, decay=1.0))
    said = after(1, 2, 3)
    opinion = knn.opinion(Heard(said.positions, said.fractions))
    fallen = np.exp(-np.array([2, 1, 3, 0, 1, 2]) / 3) * [0.5, 0.5, 1, 1, 1, 1]
    np.testing.assert_array_equal(opinion.positions, [1, 2, 3, 5, 6, 7])
    np.testing.assert_allclose(opinion.scores, 3 * float(np.log(2.0) ** 1.5) * fallen, rtol=1e-5)


def test_neighbours_of_what_was_skipped_speak_against_theirs() -> None:
    knn = fit_session_knn(sessions_of([1, 2, 3], [4, 2, 5]), Nearness(shortness=0, half_life=1e12))
    said = after(4, 1, fractions=[0.0, 1.0])
    assert knn.opinion(Heard(said.positions, said.fractions)).positions.tolist() == [1, 2, 3]
    assert knn.claims(Heard(said.positions, said.fractions)).scores.min() < 0


def test_only_the_nearest_sessions_and_the_newest_listens_are_asked() -> None:
    sessions = sessions_of([1, 2], [1, 3], [1, 4])
    nearest = fit_session_knn(sessions, Nearness(neighbours=1))
    assert nearest.next(after(1)).positions.tolist() == [1, 4]
    newest = fit_session_knn(sessions, Nearness(newest=2))
    assert 2 not in newest.next(after(1)).positions


def test_ease_solves_what_the_paper_says() -> None:
    rng = np.random.default_rng(1)
    heard = (rng.random((50, 7)) < 0.4).astype(np.float32)
    weights = ease_weights(heard.T @ heard, regularization=3.0)
    inverse = np.linalg.inv(heard.T @ heard + 3 * np.eye(7))
    wanted = -inverse / np.diag(inverse)
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(weights, wanted, atol=1e-4)


def test_ease_speaks_of_the_most_heard_tracks_alone() -> None:
    sessions = sessions_of([1, 2], [1, 2], [1, 3])
    assert fit_recency_ease(sessions, most=2).next(after(1)).positions.tolist() == [2]


def test_popular_tracks_come_whatever_was_heard() -> None:
    popular = fit_popular_tracks(sessions_of([1, 2, 2], [2, 3, 3, 3, 3]))
    assert popular.next(after(limit=2)).positions.tolist() == [3, 2]
    assert popular.next(after(7, limit=1, excluded=(3,))).positions.tolist() == [2]
    again = PopularTracks.from_parts(*popular.parts())
    assert again.next(after(limit=2)).positions.tolist() == [3, 2]


def test_more_tracks_of_a_session_than_can_be_told_apart_are_refused(fitted: dict[str, Any]) -> None:
    parameters, arrays = fitted["session_knn"].parts()
    assert SessionKnn.from_parts({**parameters, "last": 256}, arrays).nearness.last == 256
    with pytest.raises(ValueError, match="at most 256"):
        SessionKnn.from_parts({**parameters, "last": 257}, arrays)
