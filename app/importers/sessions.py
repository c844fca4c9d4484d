"""Logs of listening sessions that hold ids and nothing else: `session_id,item_id`, in the order of the listening.
`is_test` marks the sessions that are kept for a test.

CSV or Parquet; #nowplaying has this layout (1,057,684 listens). Nobody knows who listened, when, and for how long. So
each session is a user of its own; the times are made up, a second from one line to the next and the last one now; and
the listens have no value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

from sqlalchemy import Engine

from app.importers.bulk_load import LINES_PER_CHUNK, Load, load, loading
from app.importers.csv_files import by_header
from app.importers.event_files import event_load
from app.importers.files import DataFile
from app.importers.report import ImportReport, Progress, unwatched
from app.importers.rows import LONGEST_ID, Refused, decoded, external_id
from app.importers.staging import Event, store_events
from app.importers.tables import table

FORMAT = "sessions"
TRAIN_ONLY = "sessions but those for a test"
COLUMNS = ("session_id", "item_id")


def import_sessions(
    engine: Engine,
    path: Path,
    *,
    train_only: bool = False,
    lines_per_chunk: int = LINES_PER_CHUNK,
    progress: Progress = unwatched,
) -> ImportReport:
    """Imports a table of sessions; items keep their ids, and the user of session 7 is `session-7`.

    train_only: leave out the sessions that are marked as a test's; such an import has an entry of its own in the
    ledger, and one of the whole file brings the others later.
    Raises Invalid where the file is missing, empty or can't be read, or a column is lacking.
    """
    started = monotonic()
    listens = _listens(table(path), TRAIN_ONLY if train_only else FORMAT, lines_per_chunk, train_only=train_only)
    report = load(engine, event_load(engine, listens, to_now=True), progress)
    return ImportReport(FORMAT, (report,), monotonic() - started)


def _listens(file: DataFile, source: str, lines_per_chunk: int, *, train_only: bool) -> Load[Event]:
    what = loading(source, file, _reader(file), store_events, lines_per_chunk=lines_per_chunk, header_lines=1)
    is_kept = _marked_for_training(file) if train_only else None
    return replace(what, records=lambda lines: _numbered(lines, is_kept))


def _numbered(lines: Iterable[bytes], is_kept: Callable[[bytes], bool] | None) -> Iterator[tuple[int, int, bytes]]:
    """Records with the line's number behind them: what stands for the time."""
    for number, line in enumerate(lines, 1):
        if line.isspace() or is_kept is None or number == 1 or is_kept(line):
            yield number, number, line if line.isspace() else line.rstrip(b"\r\n") + b",%d\n" % number


def _marked_for_training(file: DataFile) -> Callable[[bytes], bool]:
    split = by_header(file, ("is_test",))

    def is_kept(line: bytes) -> bool:
        try:
            return split(decoded(line, "utf-8")) == ["0"]
        except Refused:
            # To be counted as bad.
            return True

    return is_kept


def _reader(file: DataFile) -> Callable[[str], Event]:
    split = by_header(file, COLUMNS)

    def read(record: str) -> Event:
        fields, _, number = record.rpartition(",")
        session_field, item_field = split(fields)
        session_id, item_id = external_id(session_field, "session"), external_id(item_field, "item")
        event_id = f"session:{session_id}:{item_id}:{number}"
        if len(event_id) > LONGEST_ID:
            raise Refused("session and item id too long together")
        return Event(event_id, f"session-{session_id}", item_id, "listen", None, float(number), session_id)

    return read
