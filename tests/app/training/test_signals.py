"""The arrays of training say of feedback exactly what the scalars of serving say."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.feedback.weights import sign_of, weight_of
from app.settings import DEFAULT_WEIGHTS
from app.training.extract import KINDS
from app.training.signals import signs_of, weights_of

BOUNDARIES = [0.0, 0.3, 0.7, 1.0, 2.0, 2.5, 3.5, 3.6, 5.0, np.nextafter(0.7, 0), np.nextafter(3.5, 4)]


@given(
    events=st.lists(st.tuples(st.sampled_from(KINDS), st.none() | st.sampled_from(BOUNDARIES) | st.floats(0, 5))),
    weights=st.fixed_dictionaries({}, optional={kind: st.floats(-2, 2) for kind in DEFAULT_WEIGHTS}),
)
def test_signs_and_weights_equal_the_scalar_ones(events: list[Any], weights: dict[str, float]) -> None:
    codes = np.array([KINDS.index(kind) for kind, _ in events], np.int16)
    values = np.array([np.nan if value is None else value for _, value in events], np.float64)

    assert signs_of(KINDS, codes, values).tolist() == [sign_of(kind, value) for kind, value in events]
    expected = np.array([weight_of(kind, value, weights) for kind, value in events], np.float32)
    np.testing.assert_array_equal(weights_of(KINDS, codes, values, weights), expected)


def test_a_like_taken_back_counts_nothing() -> None:
    unlike, none = np.array([KINDS.index("unlike")], np.int16), np.array([np.nan])
    assert signs_of(KINDS, unlike, none).tolist() == [0]
    assert weights_of(KINDS, unlike, none, DEFAULT_WEIGHTS).tolist() == [0.0]
