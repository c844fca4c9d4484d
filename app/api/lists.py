"""Lists in requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.api.cursors import encode_cursor
from app.errors import FieldError, Invalid


def listing(found: Sequence[dict[str, Any]], limit: int, key: str, of: str) -> dict[str, Any]:
    """The body of a page. found: the rows from its first on, one more than `limit` where there is more.

    key: the column that the cursor names, which is not in the answer; of: as in `encode_cursor`.
    """
    page = found[:limit]
    cursor = encode_cursor(page[-1][key], of) if len(found) > limit else None
    return {
        "items": [{name: value for name, value in row.items() if name != key} for row in page],
        "next_cursor": cursor,
    }


def distinct(values: list[str]) -> list[str]:
    """Each value once, where it came first."""
    return list(dict.fromkeys(values))


def each_once(ids: Sequence[str], field: str) -> Sequence[str]:
    """The ids of an array's entries. Raises Invalid at each that an earlier entry has too."""
    first: dict[str, int] = {}
    errors = [
        FieldError(("body", index, field), f"{each!r} is entry {first[each]} already")
        for index, each in enumerate(ids)
        if first.setdefault(each, index) != index
    ]
    if errors:
        raise Invalid(f"the array names the same {field} more than once", errors=errors)
    return ids
