"""A log of what was listened to: `user,track,time,fraction`, and `session` and `artist` where they are known.

CSV or Parquet. Times are unix seconds, or RFC 3339 with a zone; a fraction above 1 counts as 1.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from time import monotonic

from sqlalchemy import Connection, Engine

from app.importers.bulk_load import LINES_PER_CHUNK, Load, load, loading
from app.importers.csv_files import by_header
from app.importers.event_files import event_load, latest_allowed
from app.importers.files import DataFile
from app.importers.report import ImportReport, Progress, unwatched
from app.importers.rows import LONGEST_ID, Refused, external_id, number, unix_time
from app.importers.staging import Event, Item, store_events, store_items
from app.importers.tables import table

FORMAT = "listens"
ARTISTS = "listens artists"
"""The second pass over the same file has an entry of its own in the ledger."""
COLUMNS = ("user", "track", "time", "fraction")
KIND = "track"
MOST_FRACTION = 1e6


def import_listens(
    engine: Engine,
    path: Path,
    *,
    shift_to_now: bool = False,
    lines_per_chunk: int = LINES_PER_CHUNK,
    progress: Progress = unwatched,
) -> ImportReport:
    """Imports a table of listens; users and tracks keep their ids, an artist becomes its tracks' creator.

    shift_to_now: move all times so that the newest listen is of this moment; decided when the first is imported.
    Raises Invalid where the file is missing, empty or can't be read, or a column is lacking.
    """
    started = monotonic()
    file = table(path)
    listens = _listens(file, latest_allowed(engine), lines_per_chunk)
    reports = (
        load(engine, event_load(engine, listens, to_now=shift_to_now), progress),
        load(engine, _tracks(file, lines_per_chunk), progress),
    )
    return ImportReport(FORMAT, reports, monotonic() - started)


def _listens(file: DataFile, latest: float, lines_per_chunk: int) -> Load[Event]:
    split = by_header(file, COLUMNS, optional=("session",))
    return loading(
        FORMAT,
        file,
        lambda record: _listen(split(record), latest),
        store_events,
        lines_per_chunk=lines_per_chunk,
        header_lines=1,
    )


def _listen(fields: Sequence[str], latest: float) -> Event:
    user_field, track_field, time_field, fraction_field, session_field = fields
    user_id, track_id = external_id(user_field, "user"), external_id(track_field, "track")
    session_id = external_id(session_field, "session") if session_field.strip() else None
    fraction = min(number(fraction_field, "fraction", 0, MOST_FRACTION), 1.0)
    at = _time(time_field, latest)
    return Event(
        _event_id(f"{user_id}:{track_id}:{at:.3f}:{session_id or ''}"),
        user_id,
        track_id,
        "listen",
        fraction,
        at,
        session_id,
    )


def _event_id(said: str) -> str:
    """Made of what the line says, so that the same line is the same event in every run."""
    event_id = f"listen:{said}"
    return event_id if len(event_id) <= LONGEST_ID else f"listen:{hashlib.sha256(said.encode()).hexdigest()}"


def _time(field: str, latest: float) -> float:
    """Unix seconds, or RFC 3339."""
    try:
        at = datetime.fromisoformat(field.strip()) if "-" in field.strip()[1:] else None
    except ValueError:
        raise Refused("time is neither unix seconds nor RFC 3339") from None
    if at is None:
        return unix_time(field, latest)
    if at.tzinfo is None:
        raise Refused("time without a zone")
    return unix_time(repr(at.timestamp()), latest)


def _tracks(file: DataFile, lines_per_chunk: int) -> Load[Item]:
    return loading(ARTISTS, file, _track_reader(file), _store_tracks, lines_per_chunk=lines_per_chunk, header_lines=1)


def _store_tracks(db: Connection, tracks: Sequence[Item]) -> Counter[str]:
    """Each track once, with its artist where any line says it; counts lines."""
    told: dict[str, Item] = {}
    for track in tracks:
        if track.item_id not in told or "creator" in track.fields:
            told[track.item_id] = track
    counts = store_items(db, list(told.values()))
    return counts + Counter(stored=len(tracks) - len(told))


def _track_reader(file: DataFile) -> Callable[[str], Item]:
    split = by_header(file, ("track",), optional=("artist",))

    def read(record: str) -> Item:
        track_field, artist_field = split(record)
        artist = external_id(artist_field, "artist") if artist_field.strip() else None
        return Item(external_id(track_field, "track"), {"kind": KIND} | ({"creator": artist} if artist else {}))

    return read
