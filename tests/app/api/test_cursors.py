"""Cursors come back as they were, and altered ones are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.cursors import decode_cursor, encode_cursor
from app.errors import Invalid

KEYS = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=100, deadline=None)
@given(KEYS, st.text())
def test_a_cursor_comes_back(key: int, of: str) -> None:
    assert decode_cursor(encode_cursor(key, of), int, of) == key


@settings(max_examples=100, deadline=None)
@given(KEYS, st.data())
def test_an_altered_one_is_refused(key: int, data: st.DataObject) -> None:
    cursor = encode_cursor(key, "items")
    at = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda each: each != cursor[at]))
    with pytest.raises(Invalid):
        decode_cursor(cursor[:at] + other + cursor[at + 1 :], int, "items")


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_anything_else_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid):
        decode_cursor(cursor, int, "items")


def test_it_belongs_to_its_list_and_type() -> None:
    with pytest.raises(Invalid):
        decode_cursor(encode_cursor(1, "items"), int, "users")
    with pytest.raises(Invalid):
        decode_cursor(encode_cursor("1", "items"), int, "items")
