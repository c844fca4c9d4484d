"""The view's compact form loses nothing and refuses what it doesn't know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.feedback.user_view import UserView, decode, encode

LENGTHS = st.integers(0, 40)
ROWS = st.integers(0, 2**31 - 1)


@st.composite
def views(draw: st.DrawFn) -> UserView:
    n, m = draw(LENGTHS), draw(LENGTHS)
    return UserView(
        user_row=draw(st.none() | ROWS),
        rows=draw(arrays(np.int32, n)),
        weights=draw(arrays(np.float32, n)),
        signs=draw(arrays(np.int8, n, elements=st.sampled_from([-1, 0, 1]))),
        timestamps=draw(arrays(np.float64, n)),
        seen=draw(arrays(np.int32, m)),
        interactions=draw(ROWS),
        positives=draw(ROWS),
        preferred_categories=tuple(draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))),
        exposed=frozenset(draw(st.lists(st.tuples(st.text("abc-", min_size=1), st.integers(1, 99)), max_size=3))),
    )


def assert_equal(one: UserView, other: UserView) -> None:
    for name in ("user_row", "interactions", "positives", "preferred_categories", "exposed"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("rows", "weights", "signs", "timestamps", "seen"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert left.tobytes() == right.tobytes(), name


@settings(max_examples=60, deadline=None)
@given(views())
def test_decoding_gives_the_same_view(view: UserView) -> None:
    assert_equal(decode(encode(view)), view)


@settings(max_examples=30, deadline=None)
@given(views(), st.binary(max_size=5))
def test_cut_or_lengthened_bytes_are_refused(view: UserView, more: bytes) -> None:
    encoded = encode(view)
    with pytest.raises(ValueError, match="bytes"):
        decode(encoded + b"x" + more)
    with pytest.raises(ValueError, match="view"):
        decode(encoded[:-1])


def test_another_format_is_refused() -> None:
    encoded = bytes([2]) + encode(UserView.empty())[1:]
    with pytest.raises(ValueError, match="format 1"):
        decode(encoded)


def test_as_of_leaves_out_what_came_later() -> None:
    view = UserView(
        user_row=1,
        rows=np.array([5, 6, 7], np.int32),
        weights=np.ones(3, np.float32),
        signs=np.array([1, 0, 1], np.int8),
        timestamps=np.array([10.0, 20.0, 30.0]),
        seen=np.array([4, 5, 6, 7], np.int32),
        interactions=4,
        positives=3,
        preferred_categories=(),
    )
    then = view.as_of(20.0)
    assert then.rows.tolist() == [5, 6]
    assert then.seen.tolist() == [4, 5, 6]
    assert (then.interactions, then.positives) == (3, 2)
    assert view.as_of(30.0) is view
