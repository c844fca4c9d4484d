"""A movie as the movie data sets tell of it: `Title (year)` and genres, on its way to an item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

NO_GENRE = "(no genres listed)"

_TITLE_AND_YEAR = re.compile(r"(.*\S)\s*\((\d{4})(?:[-–](?:\d{4})?)?\)\s*")
# Before the first film, or so far ahead that it must be part of the title.
_FIRST_YEAR, _LAST_YEAR = 1870, 2100


def title_and_year(text: str) -> tuple[str | None, int | None]:
    """`Heat (1995)` → Heat, 1995; a title without a year stays as it is, an empty one is None."""
    match = _TITLE_AND_YEAR.fullmatch(text)
    if match and _FIRST_YEAR <= int(match[2]) <= _LAST_YEAR:
        return match[1].strip(), int(match[2])
    return text.strip() or None, None


def genres_of(text: str) -> list[str]:
    """`Comedy|Drama` → both; nothing for an empty field or the data sets' word for none."""
    return [genre.strip() for genre in text.split("|") if genre.strip() and genre.strip() != NO_GENRE]


def movie(title: str, genres: Sequence[str]) -> dict[str, Any]:
    """The fields of an item of kind movie; published_at is 1 January of the year in the title."""
    name, year = title_and_year(title)
    return {
        "kind": "movie",
        "title": name,
        "categories": list(dict.fromkeys(genres)),
        "published_at": None if year is None else f"{year:04}-01-01T00:00:00Z",
    }
