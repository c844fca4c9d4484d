"""From one line of a file to its fields, and from a field to an id, a number or a time; or the reason why not."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from app.importers.files import LONGEST_LINE

LONGEST_ID = 128

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNDECODED = re.compile(r"[\udc80-\udcff]")


class Refused(Exception):
    """A row that can't be imported; its text is the reason, the same for every row of that kind."""


def decoded(line: bytes, encoding: str, longest: int = LONGEST_LINE) -> str:
    """The line as text, without its end. Raises Refused for what no text field can hold, or was cut at `longest`."""
    if len(line) >= longest and not line.endswith(b"\n"):
        raise Refused("line too long")
    text = line.rstrip(b"\r\n").decode(encoding, "surrogateescape").removeprefix("\ufeff")
    if "\x00" in text:
        raise Refused("NUL byte")
    if not text.isascii() and _UNDECODED.search(text):
        raise Refused(f"bytes that are not {encoding.upper()}")
    return text


def comma_separated(line: str) -> list[str]:
    """The fields of one CSV record without its end; quotes may hold commas, doubled quotes and line ends."""
    if '"' not in line:
        return line.split(",")
    # Python's limit of 131,072 is for files without line ends, and those are cut before they come here.
    csv.field_size_limit(max(len(line), csv.field_size_limit()))
    try:
        return next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration):
        raise Refused("quotes that do not close") from None


def double_colons(line: str) -> list[str]:
    return line.split("::")


def movie_fields(line: str) -> Sequence[str]:
    """`id::title::genres`; a title may hold the separator."""
    item_id, _, rest = line.partition("::")
    title, separator, genres = rest.rpartition("::")
    return [item_id, title, genres] if separator else exactly(double_colons(line), 3)


def exactly(fields: Sequence[str], count: int) -> Sequence[str]:
    if len(fields) != count:
        raise Refused(f"not {count} fields")
    return fields


def external_id(field: str, what: str) -> str:
    """An id as API.md allows it: 1–128 characters without control characters or `/`."""
    found = field.strip(" ")
    if not found:
        raise Refused(f"no {what} id")
    if len(found) > LONGEST_ID:
        raise Refused(f"{what} id longer than {LONGEST_ID} characters")
    if "/" in found:
        raise Refused(f"'/' in the {what} id")
    if _CONTROL.search(found):
        raise Refused(f"control character in the {what} id")
    return found


def number(field: str, what: str, least: float, most: float) -> float:
    """A number from `least` to `most`."""
    try:
        found = float(field)
    except ValueError:
        found = None
    if found is None or "_" in field:
        raise Refused(f"{what} is not a number")
    # Written so that a NaN is refused too.
    if not least <= found <= most:
        raise Refused(f"{what} outside {least:g}–{most:g}")
    return found


def unix_time(field: str, latest: float) -> float:
    """Unix seconds from 1970 to `latest`."""
    try:
        found = float(field)
    except ValueError:
        raise Refused("timestamp is not a number") from None
    if not found >= 0:
        raise Refused("timestamp before 1970")
    if found > latest:
        raise Refused("timestamp in the future")
    return found
