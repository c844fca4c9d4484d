"""How much of a track will be heard: shrunk effects, and components that are let in one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data.sessions import Sessions
from models.fit_expected_listening import Rows, blocks_of, choose_weights, is_beyond_chance, unweighted
from models.retrieval.next_track.answers import Heard
from models.retrieval.next_track.expected_listening import COMPONENTS, ExpectedListening

NOBODY = Heard(np.empty(0, np.int32), np.empty(0, np.float32))


def made_up(listens: int = 20_000, *, seed: int = 0) -> tuple[Sessions, np.ndarray]:
    """Six tracks each of ten artists, who differ, and their tracks a little; float[60], what is true of each track."""
    rng = np.random.default_rng(seed)
    artists = np.repeat(np.arange(10), 6).astype(np.int32)
    true = np.clip(0.5 + rng.normal(0, 0.15, 10)[artists] + rng.normal(0, 0.03, 60), 0.05, 0.95)
    tracks = rng.integers(60, size=listens).astype(np.int32)
    fractions = (rng.random(listens) < true[tracks]).astype(np.float32)
    return Sessions.of(np.arange(listens) // 10, tracks, fractions, 60, artists=artists), true


def test_shrunk_means_are_nearer_the_truth_than_means() -> None:
    sessions, true = made_up(1_200)
    usual = unweighted(sessions)
    assert usual is not None
    means = np.bincount(sessions.tracks, sessions.fractions, 60) / np.bincount(sessions.tracks, minlength=60)
    without_artists = unweighted(replace(sessions, artists=None))
    assert without_artists is not None
    errors = [float(((each - true) ** 2).mean()) for each in (usual.usual, without_artists.usual, means)]
    assert errors[0] < errors[1] < errors[2]


def test_a_track_that_nobody_heard_is_taken_for_its_artists() -> None:
    sessions, _ = made_up()
    usual = unweighted(replace(sessions, tracks=np.where(sessions.tracks == 3, 4, sessions.tracks).astype(np.int32)))
    assert usual is not None
    assert usual.usual[3] == pytest.approx(usual.usual[[0, 1, 2, 4, 5]].mean(), abs=0.02)


def test_without_measured_fractions_nothing_is_usual() -> None:
    sessions, _ = made_up(100)
    assert unweighted(replace(sessions, fractions=np.full(100, np.nan, np.float32))) is None


def test_where_all_is_heard_alike_that_is_usual_of_what_nobody_heard_too() -> None:
    sessions, _ = made_up(2_000)
    alike = replace(sessions, tracks=sessions.tracks % 50, fractions=np.full(2_000, 0.8, np.float32))
    usual = unweighted(alike)
    assert usual is not None
    np.testing.assert_allclose(usual.usual, 0.8, atol=1e-4)
    assert (usual.damping > 0).all()


def listening(**weights: float) -> ExpectedListening:
    array = np.array([weights.get(name, 0.0) for name in (*COMPONENTS, "offset")], np.float32)
    return ExpectedListening(np.full(60, 0.5, np.float32), np.array([2], np.float32), array, np.array([-5], np.float32))


def test_whoever_hears_more_than_is_usual_is_expected_to_hear_more() -> None:
    asked, choice = np.array([1, 2], np.int32), np.zeros(2, np.float32)
    short = Heard(np.array([5], np.int32), np.array([1.0], np.float32))
    long = Heard(np.array([5, 6, 7, 8], np.int32), np.array([1, 1, np.nan, 1], np.float32))
    model = listening(session=1.0)
    of_none, of_short, of_long = (
        model.expected(model.evidence(heard, asked, None, choice)) for heard in (NOBODY, short, long)
    )
    assert of_none.tolist() == [0.5, 0.5]
    assert (of_short < of_long).all()
    np.testing.assert_allclose(of_long, 1 / (1 + np.exp(-1.5 / 5)), rtol=1e-5)


def test_a_lower_choice_than_was_ever_learned_from_is_taken_for_the_lowest() -> None:
    model = listening(choice=1.0)
    evidence = model.evidence(NOBODY, np.arange(4, dtype=np.int32), None, np.array([-1, -5, -90, -np.inf], np.float32))
    np.testing.assert_allclose(evidence[COMPONENTS.index("choice")], [-1, -5, -5, -5])
    assert np.isfinite(model.expected(evidence)).all()


def test_what_foretells_nothing_is_left_out() -> None:
    rng = np.random.default_rng(0)
    evidence = np.column_stack([rng.normal(size=(6_000, len(COMPONENTS))), np.ones(6_000)])
    told = 1 / (1 + np.exp(-(0.4 * evidence[:, 0] + 0.8 * evidence[:, 2] - 0.2)))
    heard = (rng.random(6_000) < told).astype(np.float64)
    weights, figures = choose_weights(Rows(evidence, heard, np.arange(6_000) // 10))
    assert weights is not None
    np.testing.assert_allclose(weights[[0, 2, -1]], [0.4, 0.8, -0.2], atol=0.1)
    assert weights[[1, 3]].tolist() == [0, 0]
    assert list(figures) == ["mean", "track", "attention"]
    losses = [figures[name]["nats"] for name in figures]
    assert losses == sorted(losses, reverse=True)


def test_where_all_is_chance_there_are_no_weights() -> None:
    rng = np.random.default_rng(1)
    evidence = np.column_stack([rng.normal(size=(3_000, len(COMPONENTS))), np.ones(3_000)])
    weights, figures = choose_weights(Rows(evidence, rng.random(3_000), np.arange(3_000) // 10))
    assert weights is None
    assert list(figures) == ["mean"]


def test_one_session_foretells_nothing() -> None:
    evidence = np.ones((300, len(COMPONENTS) + 1))
    assert choose_weights(Rows(evidence, np.linspace(0, 1, 300), np.zeros(300, np.int64))) == (None, {})


def test_many_listens_of_few_sessions_are_few() -> None:
    of_session = np.tile([1.3, -0.7], 8)
    gains = np.repeat(of_session, 50)
    assert is_beyond_chance(gains, np.arange(len(gains)))
    assert not is_beyond_chance(gains, np.repeat(np.arange(16), 50))
    assert is_beyond_chance(np.repeat(of_session + 2, 50), np.repeat(np.arange(16), 50))
    assert not is_beyond_chance(np.zeros(5), np.arange(5))


def test_no_session_is_in_two_blocks() -> None:
    assert blocks_of(np.array([0, 0, 3, 3, 3, 4]), 3).tolist() == [0, 0, 1, 1, 1, 2]


def test_it_comes_back_from_its_parts() -> None:
    model = listening(track=0.3, offset=0.1)
    again = ExpectedListening.from_parts(model.parts())
    assert again is not None
    np.testing.assert_array_equal(again.weights, model.weights)
    np.testing.assert_array_equal(again.lowest, model.lowest)
    assert ExpectedListening.from_parts({}) is None


def test_one_that_was_learned_from_other_components_is_left_alone() -> None:
    """An earlier release had one more of them, and no lowest choice."""
    parts = listening(track=0.3).parts()
    assert ExpectedListening.from_parts(parts | {"listening_weights": np.ones(6, np.float32)}) is None
    del parts["listening_lowest"]
    assert ExpectedListening.from_parts(parts) is None
