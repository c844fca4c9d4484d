"""Small data sets in the layouts of the real ones, written to a folder or a .zip."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Engine, text

MOVIES_DAT = b"0000001::Heat (1995)::Action|Crime\n0000002::Am\xc3\xa9lie (2001)::Comedy\n"
RATINGS_DAT = b"1::0000001::7::1365029107\n1::0000002::8::1366576639\n2::0000001::10::1364690142\n"

MOVIES_CSV = (
    b"movieId,title,genres\r\n"
    b'29,"City of Lost Children, The (Cit\xc3\xa9 des enfants perdus, La) (1995)",Drama|Mystery\r\n'
    b'30,"""Great Performances"" Cats (1998)",Musical\r\n'
    b"31,,(no genres listed)\r\n"
    b"32,Death Note (2006\xe2\x80\x932007),(no genres listed)\r\n"
)
RATINGS_CSV = b"userId,movieId,rating,timestamp\r\n1,29,4.5,964982703\r\n2,30,0.5,964981247\r\n2,99,3.0,964981248\r\n"
TAGS_CSV = b'userId,movieId,tag,timestamp\r\n1,29,Dark  Comedy,1445714994\r\n2,29,"""artsy""",1445714996\r\n'
LINKS_CSV = b"movieId,imdbId,tmdbId\r\n29,0112682,902\r\n30,0173732,\r\n"

ML_LATEST = {"movies.csv": MOVIES_CSV, "ratings.csv": RATINGS_CSV, "tags.csv": TAGS_CSV, "links.csv": LINKS_CSV}
MOVIETWEETINGS = {"movies.dat": MOVIES_DAT, "ratings.dat": RATINGS_DAT}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files, packed where their name ends with .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def movietweetings_lines(count: int, *, users: int = 50, movies: int = 40) -> bytes:
    """ratings.dat with `count` ratings, all different, each with a time of its own."""
    return b"".join(
        b"%d::%07d::%d::%d\n" % (n % users, (n * 7) % movies, n % 11, 1_365_000_000 + n) for n in range(count)
    )


def value_of(engine: Engine, query: str) -> object:
    """The one value of a query."""
    with engine.connect() as db:
        return db.execute(text(query)).scalar_one()


def rows_of(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as db:
        return [tuple(row) for row in db.execute(text(query))]
