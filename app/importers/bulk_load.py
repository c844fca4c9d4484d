"""One file into Postgres: some thousand lines per transaction, which also notes in `imports` how far it came.

So an import that is killed goes on where it stopped, and of the transaction it was in nothing remains. Two
imports of one file take turns at it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import dropwhile, islice
from typing import Generic, TypeVar

from psycopg2 import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from app.feedback.dirty_marks import ERASURE_LOCK
from app.importers import ledger
from app.importers.files import LONGEST_LINE, DataFile, Scan, scan
from app.importers.ledger import Source, Standing
from app.importers.report import BAD_ROWS_KEPT, BadRow, FileReport, Progress
from app.importers.rows import Refused, decoded

LINES_PER_CHUNK = 20_000
_ATTEMPTS = 5
_COLLISIONS = (errors.DeadlockDetected, errors.SerializationFailure)
"""What a chunk may meet when others write beside it; another try settles it."""

RowT = TypeVar("RowT")


def one_per_line(lines: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """The records of a file in which each line is one."""
    return ((number, number, line) for number, line in enumerate(lines, 1))


@dataclass(frozen=True, slots=True)
class Load(Generic[RowT]):
    """One file to be loaded, and how.

    parse:        a record to a row; raises Refused with the reason why it is none
    store:        writes rows in the caller's transaction and counts what became of them; harmless when repeated
    records:      of the file's lines, each with the numbers of its first and its last line, from 1
    longest_line: in bytes
    """

    source: Source
    file: DataFile
    scan: Scan
    encoding: str
    parse: Callable[[str], RowT]
    store: Callable[[Connection, Sequence[RowT]], Counter[str]]
    header_lines: int = 0
    lines_per_chunk: int = LINES_PER_CHUNK
    records: Callable[[Iterable[bytes]], Iterator[tuple[int, int, bytes]]] = one_per_line
    longest_line: int = LONGEST_LINE


def loading(
    format_name: str,
    file: DataFile,
    parse: Callable[[str], RowT],
    store: Callable[[Connection, Sequence[RowT]], Counter[str]],
    *,
    lines_per_chunk: int = LINES_PER_CHUNK,
    legacy_encoding: str | None = None,
    header_lines: int = 0,
) -> Load[RowT]:
    """The Load of a file in UTF-8, or in `legacy_encoding` where the file as a whole is not UTF-8."""
    seen = scan(file)
    encoding = "utf-8" if seen.is_utf8 or legacy_encoding is None else legacy_encoding
    source = Source(f"{format_name}/{file.name}", seen.fingerprint)
    return Load(source, file, seen, encoding, parse, store, header_lines, lines_per_chunk)


@dataclass(slots=True)
class _Chunk(Generic[RowT]):
    """The rows of the lines up to `last`, each with the number of the line where it begins."""

    last: int
    rows: list[tuple[int, RowT]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def after(self, line: int) -> _Chunk[RowT]:
        return _Chunk(
            self.last, [row for row in self.rows if row[0] > line], [bad for bad in self.bad if bad[0] > line]
        )


def load(engine: Engine, what: Load[RowT], progress: Progress) -> FileReport:
    """Loads what is left of the file. Raises Invalid where its packing is broken."""
    before = standing = ledger.open_entry(engine, what.source)
    bad: list[BadRow] = []
    if not before.finished:
        for chunk in _chunks(what, before.lines_done):
            standing = _retried(partial(_store, engine, what, chunk))
            kept = chunk.bad[: BAD_ROWS_KEPT - len(bad)]
            bad.extend(BadRow(what.file.name, line, reason) for line, reason in kept)
            progress(what.file.name, standing.lines_done, what.scan.lines)
        ledger.finish(engine, what.source)
    return FileReport(
        what.file.name,
        what.scan.lines,
        what.scan.lines if before.finished else before.lines_done,
        before.finished,
        standing.counts,
        standing.bad_by_reason,
        tuple(bad),
        standing.shift_seconds or 0.0,
    )


def parsed(what: Load[RowT]) -> Iterator[RowT]:
    """The file's good rows, for who needs to look at all of them before they are stored."""
    for chunk in _chunks(what, 0):
        yield from (row for _, row in chunk.rows)


def _chunks(what: Load[RowT], lines_done: int) -> Iterator[_Chunk[RowT]]:
    skipped = max(lines_done, what.header_lines)
    records = dropwhile(lambda record: record[1] <= skipped, what.records(what.file.lines(what.longest_line)))
    while taken := list(islice(records, what.lines_per_chunk)):
        chunk = _Chunk[RowT](last=taken[-1][1])
        for first, _, record in taken:
            _parse_into(chunk, what, first, record)
        yield chunk


def _parse_into(chunk: _Chunk[RowT], what: Load[RowT], number: int, record: bytes) -> None:
    if record.isspace():
        return
    try:
        chunk.rows.append((number, what.parse(decoded(record, what.encoding, what.longest_line))))
    except Refused as reason:
        chunk.bad.append((number, str(reason)))


def _store(engine: Engine, what: Load[RowT], chunk: _Chunk[RowT]) -> Standing:
    with engine.begin() as db:
        # The engine's limit is meant for requests.
        db.execute(text("set local statement_timeout = '5min'"))
        # Nobody is erased between the look at the tombstones and the commit.
        db.execute(text("select pg_advisory_xact_lock_shared(:lock)"), {"lock": ERASURE_LOCK})
        standing = ledger.lock_entry(db, what.source)
        if standing.lines_done >= chunk.last:
            return standing
        left = chunk.after(standing.lines_done)
        counts = what.store(db, [row for _, row in left.rows]) if left.rows else Counter[str]()
        return ledger.advance(
            db,
            what.source,
            standing,
            lines_done=left.last,
            counts=counts,
            bad_by_reason=Counter(reason for _, reason in left.bad),
        )


def _retried(attempt: Callable[[], Standing]) -> Standing:
    for tries_left in reversed(range(_ATTEMPTS)):
        try:
            return attempt()
        except DBAPIError as error:
            if not tries_left or not isinstance(error.orig, _COLLISIONS):
                raise
    raise AssertionError("the last attempt returns or raises")
