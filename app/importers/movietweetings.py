"""MovieTweetings: `user::movie::rating (0–10)::unix time` and `movie::Title (year)::Genre|Genre`, UTF-8.

https://github.com/sidooms/MovieTweetings
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from sqlalchemy import Engine

from app.importers.bulk_load import LINES_PER_CHUNK, Load, load, loading, parsed
from app.importers.event_files import event_load, latest_allowed, latest_readable
from app.importers.files import DataFolder
from app.importers.movies import genres_of, movie
from app.importers.ratings import RatingReader
from app.importers.report import ImportReport, Progress, unwatched
from app.importers.rows import double_colons, external_id, movie_fields
from app.importers.staging import Event, Item, store_events, store_items

FORMAT = "movietweetings"


def import_movietweetings(
    engine: Engine,
    path: Path,
    *,
    shift_to_now: bool = False,
    until: float | None = None,
    lines_per_chunk: int = LINES_PER_CHUNK,
    progress: Progress = unwatched,
) -> ImportReport:
    """Imports ratings.dat and movies.dat, plain or .gz, from a folder or .zip; users and movies keep their ids.

    Ratings are halved to 0–5. shift_to_now moves all times by one amount, decided when the file's first
    line is imported, so that the newest event is of that moment; a later run keeps what was decided.
    until: unix seconds as the file has them; ratings from then on stay out (counted as `later`), movies don't.
    Raises Invalid where a file is missing, empty or can't be unpacked.
    """
    started = monotonic()
    folder = DataFolder(path)
    movies = folder.require("movies.dat", FORMAT)
    ratings = _ratings(folder, latest_allowed(engine), lines_per_chunk)
    reports = (
        load(engine, loading(FORMAT, movies, _movie, store_items, lines_per_chunk=lines_per_chunk), progress),
        load(engine, event_load(engine, ratings, to_now=shift_to_now, until=until), progress),
    )
    return ImportReport(FORMAT, reports, monotonic() - started)


def read_events(path: Path) -> list[Event]:
    """Every good rating of the data set, in the order of its file, with the ids that an import gives them.

    Raises Invalid as the import does.
    """
    return list(parsed(_ratings(DataFolder(path), latest_readable(), LINES_PER_CHUNK)))


def _ratings(folder: DataFolder, latest: float, lines_per_chunk: int) -> Load[Event]:
    reader = RatingReader("mt", most=10, latest=latest)
    return loading(
        FORMAT,
        folder.require("ratings.dat", FORMAT),
        lambda line: reader(double_colons(line)),
        store_events,
        lines_per_chunk=lines_per_chunk,
    )


def _movie(line: str) -> Item:
    item_field, title, genres = movie_fields(line)
    return Item(external_id(item_field, "movie"), movie(title, genres_of(genres)))
