"""MovieTweetings: `user::movie::rating (0–10)::unix time` and `movie::Title (year)::Genre|Genre`, UTF-8.

https://github.com/sidooms/MovieTweetings
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import monotonic

from sqlalchemy import Engine

from app.importers.bulk_load import LINES_PER_CHUNK, Load, load, loading
from app.importers.files import DataFile, DataFolder
from app.importers.movies import genres_of, movie
from app.importers.ratings import RatingReader, latest_allowed, shift_decided
from app.importers.ratings import shift_to_now as decide_shift_to_now
from app.importers.report import ImportReport, Progress, unwatched
from app.importers.rows import double_colons, external_id, movie_fields
from app.importers.staging import Event, Item, store_events, store_items

FORMAT = "movietweetings"


def import_movietweetings(
    engine: Engine,
    path: Path,
    *,
    shift_to_now: bool = False,
    lines_per_chunk: int = LINES_PER_CHUNK,
    progress: Progress = unwatched,
) -> ImportReport:
    """Imports ratings.dat and movies.dat, plain or .gz, from a folder or .zip; users and movies keep their ids.

    Ratings are halved to 0–5. shift_to_now moves all times by one amount, decided when the file's first
    line is imported, so that the newest event is of that moment; a later run keeps what was decided.
    Raises Invalid where a file is missing, empty or can't be unpacked.
    """
    started = monotonic()
    folder = DataFolder(path)
    movies, ratings = folder.require("movies.dat", FORMAT), folder.require("ratings.dat", FORMAT)
    reports = (
        load(engine, loading(FORMAT, movies, _movie, store_items, lines_per_chunk=lines_per_chunk), progress),
        load(engine, _ratings(engine, ratings, lines_per_chunk, to_now=shift_to_now), progress),
    )
    return ImportReport(FORMAT, reports, monotonic() - started)


def _ratings(engine: Engine, file: DataFile, lines_per_chunk: int, *, to_now: bool) -> Load[Event]:
    reader = RatingReader("mt", most=10, latest=latest_allowed(engine))
    unshifted = loading(
        FORMAT,
        file,
        lambda line: reader(double_colons(line)),
        store_events,
        lines_per_chunk=lines_per_chunk,
    )
    decide = decide_shift_to_now if to_now else shift_decided
    shifted = reader.shifted(decide(engine, unshifted))
    return replace(unshifted, parse=lambda line: shifted(double_colons(line)))


def _movie(line: str) -> Item:
    item_field, title, genres = movie_fields(line)
    return Item(external_id(item_field, "movie"), movie(title, genres_of(genres)))
