"""MovieLens in its three layouts: ml-100k (tabs), ml-1m and ml-10m (`::`), ml-latest and ml-25m (CSV).

https://grouplens.org/datasets/movielens/ and the README in each archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Engine

from app.errors import Invalid
from app.importers.bulk_load import LINES_PER_CHUNK, Load, load, loading, parsed
from app.importers.csv_files import by_header
from app.importers.event_files import event_load, latest_allowed, latest_readable
from app.importers.files import DataFile, DataFolder
from app.importers.movies import genres_of, movie
from app.importers.ratings import RatingReader
from app.importers.report import ImportReport, Progress, unwatched
from app.importers.rows import (
    Refused,
    comma_separated,
    double_colons,
    exactly,
    external_id,
    movie_fields,
)  # fmt: skip
from app.importers.staging import (
    Event,
    Item,
    ItemTag,
    User,
    store_events,
    store_items,
    store_tags,
    store_users,
)  # fmt: skip

FORMAT = "movielens"

_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a layout: how a line splits, what its fields make, where that goes.

    columns: of a CSV, in the order that `read` wants them; the file's header may order them otherwise
    """

    file: str
    split: Callable[[str], Sequence[str]]
    read: Callable[[Sequence[str]], Any]
    store: Callable[[Connection, Sequence[Any]], Counter[str]]
    columns: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one generation of MovieLens, in the order of import; the last one holds the ratings.

    legacy: the encoding of a file that is not UTF-8; None where such a line is an error
    """

    name: str
    parts: tuple[Part, ...]
    legacy: str | None = None

    @property
    def ratings(self) -> str:
        return self.parts[-1].file


def import_movielens(
    engine: Engine,
    path: Path,
    *,
    until: float | None = None,
    lines_per_chunk: int = LINES_PER_CHUNK,
    progress: Progress = unwatched,
) -> ImportReport:
    """Imports ratings, movies and, where there are any, tags, links and users from a folder or .zip.

    Ids stay as they are in the files. until: unix seconds; ratings from then on stay out (counted as `later`),
    movies and tags don't, for those are kept without a time.
    Raises Invalid where no layout is recognised, a file that it needs is missing or empty, a CSV's header
    lacks a column, or something can't be unpacked.
    """
    started = monotonic()
    folder = DataFolder(path)
    layout = _layout_of(folder, latest_allowed(engine))
    found = [(part, _file_of(folder, layout, part)) for part in layout.parts]
    *others, ratings = [_load(layout, part, file, lines_per_chunk) for part, file in found if file]
    loads = (*others, event_load(engine, ratings, until=until))
    reports = tuple(load(engine, each, progress) for each in loads)
    return ImportReport(FORMAT, reports, monotonic() - started)


def read_events(path: Path) -> list[Event]:
    """Every good rating of the data set, in the order of its file, with the ids that an import gives them.

    Raises Invalid as the import does.
    """
    folder = DataFolder(path)
    layout = _layout_of(folder, latest_readable())
    ratings = layout.parts[-1]
    return list(parsed(_load(layout, ratings, folder.require(ratings.file, layout.name), LINES_PER_CHUNK)))


def _layouts(rating: RatingReader) -> tuple[Layout, ...]:
    return (
        Layout(
            "ml-100k",
            (
                Part("u.item", _piped, _movie_100k, store_items),
                Part("u.user", _piped, _user_100k, store_users, optional=True),
                Part("u.data", _tabbed, rating, store_events),
            ),
            legacy="latin-1",
        ),
        Layout(
            "ml-1m",
            (
                Part("movies.dat", movie_fields, _movie, store_items),
                Part("tags.dat", double_colons, _tag, store_tags, optional=True),
                Part("users.dat", double_colons, _user_1m, store_users, optional=True),
                Part("ratings.dat", double_colons, rating, store_events),
            ),
            legacy="latin-1",
        ),
        Layout(
            "ml-latest",
            (
                _csv("movies.csv", _movie, store_items, "movieId,title,genres"),
                _csv("links.csv", _links, store_items, "movieId,imdbId,tmdbId", optional=True),
                _csv("tags.csv", _tag, store_tags, "userId,movieId,tag,timestamp", optional=True),
                _csv("ratings.csv", rating, store_events, "userId,movieId,rating,timestamp"),
            ),
        ),
    )


def _csv(
    file: str,
    read: Callable[[Sequence[str]], Any],
    store: Callable[[Connection, Sequence[Any]], Counter[str]],
    columns: str,
    *,
    optional: bool = False,
) -> Part:
    return Part(file, comma_separated, read, store, tuple(columns.split(",")), optional)


def _layout_of(folder: DataFolder, latest: float) -> Layout:
    layouts = _layouts(RatingReader("ml", most=5, latest=latest))
    present = [layout for layout in layouts if folder.get(layout.ratings)]
    if len(present) == 1:
        return present[0]
    wanted = ", ".join(f"{layout.ratings} ({layout.name})" for layout in present or layouts)
    if present:
        raise Invalid(f"{folder.path} holds more than one MovieLens data set: {wanted}; name the folder of one")
    raise Invalid(f"{folder.path} is no MovieLens data set: looked for {wanted}, plain or .gz; {folder.contents}")


def _file_of(folder: DataFolder, layout: Layout, part: Part) -> DataFile | None:
    if not part.optional:
        return folder.require(part.file, layout.name)
    file = folder.get(part.file)
    return file if file and file.has_lines() else None


def _load(layout: Layout, part: Part, file: DataFile, lines_per_chunk: int) -> Load[Any]:
    split = by_header(file, part.columns) if part.columns else part.split
    return loading(
        FORMAT,
        file,
        lambda line: part.read(split(line)),
        part.store,
        lines_per_chunk=lines_per_chunk,
        legacy_encoding=layout.legacy,
        header_lines=1 if part.columns else 0,
    )


def _piped(line: str) -> list[str]:
    return line.split("|")


def _tabbed(line: str) -> list[str]:
    return line.split("\t")


def _movie(fields: Sequence[str]) -> Item:
    item_field, title, genres = exactly(fields, 3)
    return Item(external_id(item_field, "movie"), movie(title, genres_of(genres)))


def _movie_100k(fields: Sequence[str]) -> Item:
    # movie id | title | release date | video release date | IMDb address | one flag per genre
    item_field, title, _, _, _, *flags = exactly(fields, 5 + len(_GENRES_100K))
    if not set(flags) <= {"0", "1"}:
        raise Refused("genre flag neither 0 nor 1")
    genres = [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
    return Item(external_id(item_field, "movie"), movie(title, [g for g in genres if g != "unknown"]))


def _links(fields: Sequence[str]) -> Item:
    item_field, imdb_id, tmdb_id = fields
    links = {"imdb_id": imdb_id.strip(), "tmdb_id": tmdb_id.strip()}
    attributes = {name: value for name, value in links.items() if value}
    return Item(external_id(item_field, "movie"), {"attributes": attributes})


def _tag(fields: Sequence[str]) -> ItemTag:
    _, item_field, tag, _ = exactly(fields, 4)
    lower = " ".join(tag.lower().split())
    if not lower:
        raise Refused("empty tag")
    return ItemTag(external_id(item_field, "movie"), lower)


# Zip codes stay out: they help to identify people, and nothing here reads them.
def _user_100k(fields: Sequence[str]) -> User:
    user_field, age, gender, occupation, _ = exactly(fields, 5)
    return User(external_id(user_field, "user"), {"age": age, "gender": gender, "occupation": occupation})


def _user_1m(fields: Sequence[str]) -> User:
    user_field, gender, age, occupation, _ = exactly(fields, 5)
    return User(external_id(user_field, "user"), {"age": age, "gender": gender, "occupation": occupation})
