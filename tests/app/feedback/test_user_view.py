"""The view's compact form loses nothing and refuses what it doesn't know."""

from __future__ import annotations

import gc
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from app.feedback.user_view import KEPT_BYTES, LARGEST_KEPT, MOST_KEPT, UserView, decode, encode

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


def of_a_user(row: int, n_seen: int) -> bytes:
    return encode(replace(UserView.empty(), user_row=row, seen=np.full(n_seen, 7, np.int32)))


def test_the_same_bytes_give_the_very_same_view() -> None:
    encoded = of_a_user(1, 100)
    assert decode(encoded) is decode(bytes(bytearray(encoded)))
    assert decode(of_a_user(2, 100)) is not decode(encoded)


@pytest.mark.parametrize("n_seen", [0, 5_000, LARGEST_KEPT // 4 - 100])
def test_what_stays_decoded_has_a_limit(n_seen: int) -> None:
    """However many users ask, and however much they saw; what was used last stays."""
    size, often = len(of_a_user(0, n_seen)), decode(of_a_user(0, n_seen))
    views = []
    for row in range(1, 2 * MOST_KEPT):
        views.append(ref(decode(of_a_user(row, n_seen))))
        assert decode(of_a_user(0, n_seen)) is often
    gc.collect()
    kept = sum(view() is not None for view in views) + 1
    assert kept == min(MOST_KEPT, KEPT_BYTES // size)


def test_one_that_saw_too_much_is_not_kept() -> None:
    small, large = of_a_user(1, 10), of_a_user(2, LARGEST_KEPT // 4)
    view = decode(small)
    passing = ref(decode(large))
    assert passing() is None
    assert decode(small) is view
