"""CSV files with a header: columns found by their names, and records that span lines inside quotes (RFC 4180)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from app.errors import Invalid
from app.importers.files import DataFile
from app.importers.rows import Refused, comma_separated, decoded, exactly

LONGEST_RECORD = 1 << 20
"""In bytes; for how far a quote that was opened is searched for its end."""


def by_header(file: DataFile, columns: Sequence[str], optional: Sequence[str] = ()) -> Callable[[str], list[str]]:
    """What splits a record into `columns` and `optional`, wherever the file's header has them.

    An optional column that the file lacks is an empty field. Raises Invalid where one of `columns` is lacking.
    """
    header = _header(file)
    wanted = [column.lower() for column in columns]
    if not set(wanted) <= set(header):
        found = ",".join(header)[:200]
        raise Invalid(f"{file.place}: its first line should be {','.join(columns)}, and is {found!r}")
    # Behind the last field there is an empty one, for what the file lacks.
    places = [header.index(name) if name in header else -1 for name in (*wanted, *map(str.lower, optional))]

    def split(record: str) -> list[str]:
        fields = [*exactly(comma_separated(record), len(header)), ""]
        return [fields[place] for place in places]

    return split


def spanning_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Each record with the numbers of its first and its last line, from 1.

    A line whose quotes stay open is a record of its own, hence a bad one, and doesn't swallow those behind it.
    """
    source, first = _Lines(lines), 1
    while line := source.take():
        more = _until_closed(line, source)
        record = b"".join([line, *more])
        if more and not _is_one_record(record):
            source.give_back(more)
            more, record = [], line
        yield first, first + len(more), record
        first += len(more) + 1


class _Lines:
    """Lines one by one, which can be given back."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._given_back = deque[bytes]()

    def take(self) -> bytes:
        """The next line, with its end; nothing behind the last one."""
        return self._given_back.popleft() if self._given_back else next(self._lines, b"")

    def give_back(self, lines: Sequence[bytes]) -> None:
        self._given_back.extendleft(reversed(lines))


def _until_closed(line: bytes, source: _Lines) -> list[bytes]:
    """The lines from behind `line` to the one that closes its quotes, or as far as is searched."""
    more: list[bytes] = []
    size, is_open = len(line), line.count(b'"') % 2 == 1
    while is_open and size < LONGEST_RECORD and (line := source.take()):
        more.append(line)
        size += len(line)
        is_open = line.count(b'"') % 2 == 0
    return more


def _is_one_record(record: bytes) -> bool:
    try:
        # Any encoding that agrees with ASCII finds the same quotes.
        comma_separated(record.decode("latin-1").rstrip("\r\n"))
    except Refused:
        return False
    return True


def _header(file: DataFile) -> list[str]:
    try:
        line = decoded(next(file.lines(), b""), "utf-8")
        return [name.strip().lower() for name in comma_separated(line)]
    except Refused as reason:
        raise Invalid(f"{file.place}: its first line should name the columns: {reason}") from None
