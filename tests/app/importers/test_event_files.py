"""Events of a data set up to a time, with times moved, and read without a database."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.errors import Invalid
from app.importers import movielens, movietweetings
from app.importers.movielens import import_movielens
from app.importers.movietweetings import import_movietweetings
from tests.app.importers.datasets import (
    ML_LATEST,
    MOVIES_DAT,
    MOVIETWEETINGS,
    movietweetings_lines,
    rows_of,
    value_of,
    write_folder,
)

FIRST = 1_365_000_000
"""The time of the first of movietweetings_lines; each of the others is a second after the one before."""

STORED = "select event_id, extract(epoch from timestamp)::int from interactions order by seq"


def write_ratings(folder: Path, count: int) -> Path:
    return write_folder(folder, MOVIETWEETINGS | {"ratings.dat": movietweetings_lines(count)})


def shifts_of(engine: Engine) -> list[tuple[object, ...]]:
    """By how much times in the database differ from those in the file, each amount once."""
    return rows_of(
        engine,
        "select distinct extract(epoch from timestamp)::float8 - split_part(event_id, ':', 4)::float8"
        " from interactions",
    )


def test_until_leaves_out_later_events_and_a_full_import_brings_them(engine: Engine, tmp_path: Path) -> None:
    folder = write_ratings(tmp_path, 10)

    part = import_movietweetings(engine, folder, until=FIRST + 8)
    stored = rows_of(engine, STORED)
    whole = import_movietweetings(engine, folder)

    assert part.of("movies.dat").counts == {"stored": 2}
    assert part.of("ratings.dat").counts == {"stored": 8, "later": 2}
    assert [time for _, time in stored] == [FIRST + n for n in range(8)]
    assert whole.of("ratings.dat").counts == {"stored": 2, "duplicates": 8}
    assert [time for _, time in rows_of(engine, STORED)] == [FIRST + n for n in range(10)]


def test_until_again_has_nothing_to_do_and_a_later_until_goes_on(engine: Engine, tmp_path: Path) -> None:
    folder = write_ratings(tmp_path, 10)
    import_movietweetings(engine, folder, until=FIRST + 3)

    again = import_movietweetings(engine, folder, until=float(FIRST + 3))
    more = import_movietweetings(engine, folder, until=FIRST + 5.5)
    nothing = import_movietweetings(engine, folder, until=0)

    assert again.nothing_to_do
    assert again.of("ratings.dat").counts == {"stored": 3, "later": 7}
    assert more.of("ratings.dat").counts == {"stored": 3, "duplicates": 3, "later": 4}
    assert nothing.of("ratings.dat").counts == {"later": 10}


class _Stopped(Exception):
    """An import that ends early, as its progress decides."""


def test_an_import_until_a_time_goes_on_where_it_stopped(engine: Engine, tmp_path: Path) -> None:
    folder = write_ratings(tmp_path, 10)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("ratings.dat", 6):
            raise _Stopped

    with pytest.raises(_Stopped):
        import_movietweetings(engine, folder, until=FIRST + 5, lines_per_chunk=3, progress=stop)
    report = import_movietweetings(engine, folder, until=FIRST + 5, lines_per_chunk=3)

    assert report.of("ratings.dat").lines_before == 6
    assert report.of("ratings.dat").counts == {"stored": 5, "later": 5}
    assert value_of(engine, "select count(*) from interactions") == 5


def test_a_part_and_the_rest_are_shifted_by_the_same(engine: Engine, tmp_path: Path) -> None:
    folder = write_ratings(tmp_path, 10)

    part = import_movietweetings(engine, folder, shift_to_now=True, until=FIRST + 4)
    whole = import_movietweetings(engine, folder, shift_to_now=True)

    assert part.of("ratings.dat").counts == {"stored": 4, "later": 6}
    assert whole.of("ratings.dat").counts == {"stored": 6, "duplicates": 4}
    shift = part.of("ratings.dat").shift_seconds
    assert shift > 0
    assert whole.of("ratings.dat").shift_seconds == shift
    assert shifts_of(engine) == [(shift,)]


def test_after_a_part_came_in_unshifted_the_rest_does_too(engine: Engine, tmp_path: Path) -> None:
    folder = write_ratings(tmp_path, 10)
    import_movietweetings(engine, folder, until=FIRST + 4)

    report = import_movietweetings(engine, folder, shift_to_now=True)

    assert report.of("ratings.dat").counts == {"stored": 6, "duplicates": 4}
    assert shifts_of(engine) == [(0.0,)]


def test_movielens_until_a_time_has_all_movies_and_tags(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, ML_LATEST)

    part = import_movielens(engine, folder, until=964982703)
    whole = import_movielens(engine, folder)

    assert part.of("ratings.csv").counts == {"stored": 2, "later": 1}
    assert part.of("movies.csv").counts == {"stored": 4}
    assert part.of("tags.csv").counts == {"stored": 2}
    assert whole.of("ratings.csv").counts == {"stored": 1, "duplicates": 2}


def test_what_is_read_is_what_an_import_stores(engine: Engine, tmp_path: Path) -> None:
    bad = b"nonsense\n1::0000001::11::1365029107\n"
    tweets = write_folder(tmp_path / "a", {"movies.dat": MOVIES_DAT, "ratings.dat.gz": bad + movietweetings_lines(50)})
    lens = write_folder(tmp_path / "b", ML_LATEST)

    events = movietweetings.read_events(tweets) + movielens.read_events(lens)
    import_movietweetings(engine, tweets)
    import_movielens(engine, lens)

    stored = """
        select event_id, user_id, item_id, i.kind, value, extract(epoch from timestamp)::float8
        from interactions i join users on users.row = user_row join items on items.row = item_row order by seq
    """
    assert len(events) == 53
    assert [event[:6] for event in events] == rows_of(engine, stored)


def test_reading_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"notes.txt": b"x"})
    with pytest.raises(Invalid, match=r"lacks ratings\.dat"):
        movietweetings.read_events(folder)
    with pytest.raises(Invalid, match="is no MovieLens data set"):
        movielens.read_events(folder)
