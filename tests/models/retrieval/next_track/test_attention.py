"""Self-attention as it is served, in numpy; where torch is there also as it learns."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from models.contracts import NextTrackRecommender
from models.retrieval.next_track.answers import LONGEST, UNKNOWN_LISTENING, Heard
from models.retrieval.next_track.attention import SessionAttention
from models.retrieval.next_track.first_vectors import first_vectors
from tests.next_track_toys import N_TRACKS, NEVER_HEARD, RING_A, RING_B, after, ring_sessions, sessions_of

WIDTH, HEADS = 8, 2


def drawn(*, layers: int = 2, seed: int = 0, knows_listening: bool = True) -> SessionAttention:
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> Any:
        return (rng.normal(size=shape) / math.sqrt(WIDTH)).astype(np.float32)

    vectors = array(N_TRACKS, WIDTH)
    layer = [
        {
            "before": array(2, WIDTH), "project": array(WIDTH + 1, 3 * WIDTH), "distance": array(HEADS, LONGEST),
            "join": array(WIDTH + 1, WIDTH), "between": array(2, WIDTH), "inner": array(WIDTH + 1, 2 * WIDTH),
            "outer": array(2 * WIDTH + 1, WIDTH),
        }
        for _ in range(layers)
    ]  # fmt: skip
    return SessionAttention(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True), layers=tuple(layer), fraction=array(WIDTH),
        last=array(2, WIDTH), out=array(WIDTH + 1, WIDTH), temperature=9.0, listening=array(WIDTH + 1, WIDTH),
        usual_listening=array(N_TRACKS), knows_listening=knows_listening,
    )  # fmt: skip


def heard(*tracks: int, fractions: list[float] | None = None) -> Heard:
    query = after(*tracks, fractions=fractions)
    return Heard(query.positions, query.fractions)


def test_it_keeps_the_protocol() -> None:
    attention = drawn()
    assert isinstance(attention, NextTrackRecommender)
    found = attention.next(after(1, 2, 3, limit=6, excluded=(4, 5)))
    assert len(set(found.positions.tolist())) == 6
    assert not {4, 5} & set(found.positions.tolist())
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.listening > 0) & (found.listening < 1)).all()
    scores = attention.vectors @ attention.direction(attention.state(heard(1, 2, 3)))
    np.testing.assert_allclose(found.scores, scores[found.positions], rtol=1e-5)
    assert np.abs(scores).max() <= 9.0 + 1e-4


def test_order_distance_and_fractions_matter() -> None:
    attention = drawn()
    states = [
        attention.state(session)
        for session in (
            heard(1, 2, 3), heard(2, 1, 3), heard(1, 3), heard(1, 2, 3, fractions=[1, 1, 0.1]),
            heard(1, 2, 3, fractions=[1, 1, 1]),
        )
    ]  # fmt: skip
    for first in range(len(states)):
        for second in range(first):
            assert not np.allclose(states[first], states[second], atol=1e-4)


def test_an_unknown_fraction_is_neither_liked_nor_skipped() -> None:
    attention = drawn()
    np.testing.assert_allclose(
        attention.state(heard(1, 2)), attention.state(heard(1, 2, fractions=[0.5, 0.5])), rtol=1e-5
    )


def test_only_the_latest_tracks_count() -> None:
    attention, latest = drawn(), list(range(LONGEST))
    np.testing.assert_array_equal(
        attention.next(after(35, *latest)).positions, attention.next(after(*latest)).positions
    )


def test_sessions_that_say_nothing_get_no_answer() -> None:
    for query in (after(), after(N_TRACKS), after(-1)):
        assert len(drawn().next(query).positions) == 0


def test_without_measured_fractions_one_figure_is_expected_of_all() -> None:
    found = drawn(knows_listening=False).next(after(1, 2))
    assert found.listening.tolist() == [UNKNOWN_LISTENING] * 5


@pytest.mark.parametrize("layers", [1, 2])
def test_it_comes_back_from_its_parts(layers: int) -> None:
    attention = drawn(layers=layers)
    again = SessionAttention.from_parts(*attention.parts())
    for left, right in zip(attention.next(after(1, 2, 3)), again.next(after(1, 2, 3)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_tracks_heard_together_start_near_each_other() -> None:
    vectors = first_vectors(ring_sessions(), 16, seed=0)
    neighbours, strangers = (vectors[3] @ vectors[other] for other in (4, 24))
    assert neighbours > 0.5 > abs(strangers) + 0.3
    assert not vectors[NEVER_HEARD].any()


def test_serving_imports_no_torch() -> None:
    if "torch" in sys.modules:
        pytest.skip("another test has imported it")
    import models.next_recipes  # noqa: F401, PLC0415

    assert "torch" not in sys.modules


@pytest.fixture(scope="module")
def fitting() -> Any:
    pytest.importorskip("torch", reason="the extra `train` is not installed").set_num_threads(1)
    return import_module("models.retrieval.next_track.attention_fit")


def test_numpy_says_what_torch_learned(fitting: Any) -> None:
    """The state after every track of a session, worked out in one pass by torch and one by one in numpy."""
    import torch  # noqa: PLC0415

    training = fitting.Training(width=WIDTH, heads=HEADS, layers=2)
    network = fitting._Network(training, np.zeros((N_TRACKS, WIDTH), np.float32), knows_listening=True)
    attention = drawn()
    network.resume(attention)
    network.eval()
    tracks, fractions = np.array([[3, 7, 7, 30, 1]]), np.array([[1, 0.2, np.nan, 0.9, 0.4]], np.float32)
    with torch.no_grad():
        states = network.states(network.unit(torch.from_numpy(tracks)), torch.from_numpy(fractions))[0].numpy()
    for end in range(1, 6):
        ours = attention.state(Heard(tracks[0, :end].astype(np.int32), fractions[0, :end]))
        np.testing.assert_allclose(ours, states[end - 1], atol=1e-4)
    frozen = network.frozen()
    for left, right in zip(frozen.next(after(1, 2, 3)), attention.next(after(1, 2, 3)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_the_short_form_of_the_loss_is_the_long_one(fitting: Any) -> None:
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    asked, rows, right = (torch.randn(*shape, requires_grad=True) for shape in ((5, 4), (7, 4), (5,)))
    targets, drawn_tracks = torch.tensor([1, 2, 3, 4, 9]), torch.tensor([2, 2, 5, 1, 7, 3, 8])
    log_q = torch.randn(7)
    short = fitting._LogSum.apply(asked, rows, right, targets, drawn_tracks, log_q)
    wrong = (asked @ rows.T - log_q).masked_fill(drawn_tracks == targets[:, None], -torch.inf)
    long = torch.cat([right[:, None], wrong], 1).logsumexp(1)
    torch.testing.assert_close(short, long)
    slopes = torch.randn(5)
    given = [torch.autograd.grad((loss * slopes).sum(), [asked, rows, right]) for loss in (short, long)]
    for left, other in zip(*given, strict=True):
        torch.testing.assert_close(left, other)


def test_it_learns_to_walk_the_rings(fitting: Any) -> None:
    training = fitting.Training(width=16, heads=2, epochs=6, batch=8, negatives=30, rate=2e-2, dropout=0.0)
    attention = fitting.fit_session_attention(ring_sessions(200), training=training, seed=0)
    for session, ring in (((3, 4, 5), RING_A), ((25, 26), RING_B)):
        found = attention.next(after(*session, limit=3)).positions.tolist()
        assert found[0] == session[-1] + 1
        assert set(found) <= set(ring)
    assert not attention.knows_listening


def test_it_learns_how_long_tracks_are_heard(fitting: Any) -> None:
    """Tracks of one ring are heard out, those of the other are left early."""
    plain = ring_sessions(200)
    fractions = np.where(plain.tracks < 20, 0.95, 0.1).astype(np.float32)
    training = fitting.Training(width=16, heads=2, epochs=8, batch=8, negatives=30, rate=2e-2)
    attention = fitting.fit_session_attention(replace(plain, fractions=fractions), training=training, seed=0)
    assert attention.next(after(3, 4, fractions=[0.95, 0.95])).listening.min() > 0.7
    state = attention.state(Heard(np.array([23, 24], np.int32), np.array([0.1, 0.1], np.float32)))
    assert attention.expected_listening(state, np.array(RING_B)).max() < 0.4
    assert set(attention.next(after(3, 24, fractions=[0.95, 0.1])).positions.tolist()) <= set(RING_A)


def test_windows_cover_every_transition_once(fitting: Any) -> None:
    sessions = sessions_of(list(range(35)), [1], [2, 3], [int(t) % N_TRACKS for t in range(2 * LONGEST + 1)])
    starts, lengths = fitting._windows(sessions)
    covered = sorted(
        place for start, length in zip(starts, lengths, strict=True) for place in range(start + 1, start + length)
    )
    assert covered == sessions.prefixes().nexts.tolist()
    assert lengths.max() <= LONGEST + 1
    assert lengths.min() >= 2
