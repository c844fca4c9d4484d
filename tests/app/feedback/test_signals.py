"""The arrays of training say of feedback exactly what the scalars of serving say."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.feedback.signals import KINDS, masses_of, signs_of, weights_of
from app.feedback.weights import mass_of, sign_of, weight_of
from app.settings import DEFAULT_WEIGHTS

BOUNDARIES = [0.0, 0.3, 0.7, 1.0, 2.0, 2.5, 3.5, 3.6, 5.0, np.nextafter(0.7, 0), np.nextafter(3.5, 4)]


@given(
    events=st.lists(st.tuples(st.sampled_from(KINDS), st.none() | st.sampled_from(BOUNDARIES) | st.floats(0, 5))),
    weights=st.fixed_dictionaries({}, optional={kind: st.floats(-2, 2) for kind in DEFAULT_WEIGHTS}),
)
def test_signs_weights_and_masses_equal_the_scalar_ones(events: list[Any], weights: dict[str, float]) -> None:
    codes = np.array([KINDS.index(kind) for kind, _ in events], np.int16)
    values = np.array([np.nan if value is None else value for _, value in events], np.float64)

    assert signs_of(KINDS, codes, values).tolist() == [sign_of(kind, value) for kind, value in events]
    expected = np.array([weight_of(kind, value, weights) for kind, value in events], np.float32)
    np.testing.assert_array_equal(weights_of(KINDS, codes, values, weights), expected)
    masses = [mass_of(kind, value, weights) for kind, value in events]
    np.testing.assert_allclose(masses_of(KINDS, codes, values, weights), masses, rtol=1e-12)


def test_a_like_taken_back_counts_nothing() -> None:
    unlike, none = np.array([KINDS.index("unlike")], np.int16), np.array([np.nan])
    assert signs_of(KINDS, unlike, none).tolist() == [0]
    assert weights_of(KINDS, unlike, none, DEFAULT_WEIGHTS).tolist() == [0.0]
    assert masses_of(KINDS, unlike, none, DEFAULT_WEIGHTS | {"unlike": 1.0}).tolist() == [0.0]


def test_a_mass_is_one_and_the_weight_and_nothing_where_there_is_none() -> None:
    weights = DEFAULT_WEIGHTS
    assert [mass_of(kind, None, weights) for kind in ("impression", "unlike", "view", "dislike", "skip")] == [
        0.0, 0.0, 1.3, 0.0, 0.5,
    ]  # fmt: skip
    assert [mass_of("rating", value, weights) for value in (0, 2.5, 5)] == [0.0, 1.0, 2.0]
