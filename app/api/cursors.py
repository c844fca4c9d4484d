"""Opaque cursors: where the next page of a list begins.

A cursor holds the key of the last row on the page and a check sum over it and the list it belongs to, so that one
that was altered, or taken to another list or other filters, is refused. It is no secret: it names a row, no more.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Annotated, TypeVar

import orjson
from fastapi import Query

from app.errors import Invalid

Key = TypeVar("Key", int, str)

Cursor = Annotated[str | None, Query(max_length=512, description="`next_cursor` of the page before", examples=[None])]
PageLimit = Annotated[int, Query(ge=1, le=1000, description="entries on this page")]

SUM_BYTES = 8


def encode_cursor(key: int | str, of: str = "") -> str:
    """The cursor behind the row with this key. of: the list it belongs to, with its filters."""
    body = orjson.dumps(key)
    return urlsafe_b64encode(_check_sum(body, of) + body).decode().rstrip("=")


def decode_cursor(cursor: str, kind: type[Key], of: str = "") -> Key:
    """The key again. Raises Invalid for anything that `encode_cursor` did not make for this list."""
    try:
        decoded = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        check_sum, body = decoded[:SUM_BYTES], decoded[SUM_BYTES:]
        key = orjson.loads(body)
    except ValueError:
        raise _refused(cursor) from None
    if check_sum != _check_sum(body, of) or type(key) is not kind or encode_cursor(key, of) != cursor:
        raise _refused(cursor)
    return key


def _check_sum(body: bytes, of: str) -> bytes:
    return blake2b(body, digest_size=SUM_BYTES, person=b"segue", key=of.encode("utf-8", "replace")[:64]).digest()


def _refused(cursor: str) -> Invalid:
    return Invalid.field(("query", "cursor"), f"{cursor!r} is not a next_cursor of this list with these filters")
