"""MovieLens in, in each of its layouts; the real ml-latest-small where it is at hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.errors import Invalid
from app.importers.movielens import import_movielens
from tests.app.importers.datasets import ML_LATEST, RATINGS_CSV, rows_of, value_of, write_folder, write_zip

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "movies" / "ml-latest-small"

ITEMS = "select item_id, title, categories, extract(year from published_at)::int from items order by item_id"
EVENTS = """
    select user_id, item_id, value, extract(epoch from timestamp)::int
    from interactions join users on users.row = user_row join items on items.row = item_row order by seq
"""

FLAGS = "0|" * 5 + "1|" + "0|" * 12 + "0"  # comedy
ML_100K = {
    "u.item": (
        f"1|Am\xe9lie (2001)|01-Jan-2001||http://us.imdb.com/M/title-exact?x|{FLAGS}\n"
        f"267|unknown||||1{FLAGS[1:]}\n"
        f"3|Broken (1990)|||x|2{FLAGS[1:]}\n"
    ).encode("latin-1"),
    "u.user": b"196|49|M|writer|55105\n",
    "u.data": b"196\t1\t3\t881250949\n196\t267\t5\t881250950\n",
}
ML_1M = {
    "movies.dat": "1::L\xe9on (1994)::Action|Children's\n".encode("latin-1"),
    "users.dat": b"1::F::1::10::48067\n",
    "ratings.dat": b"1::1::5::978300760\n",
}


def test_ml_latest_has_quoted_commas_line_ends_of_windows_tags_and_links(engine: Engine, tmp_path: Path) -> None:
    report = import_movielens(engine, write_folder(tmp_path, ML_LATEST))

    assert report.rows_bad == 0
    assert rows_of(engine, ITEMS) == [
        ("29", "City of Lost Children, The (Cité des enfants perdus, La)", ["Drama", "Mystery"], 1995),
        ("30", '"Great Performances" Cats', ["Musical"], 1998),
        ("31", None, [], None),
        ("32", "Death Note", [], 2006),
        ("99", None, [], None),
    ]
    assert rows_of(engine, EVENTS) == [
        ("1", "29", 4.5, 964982703), ("2", "30", 0.5, 964981247), ("2", "99", 3.0, 964981248),
    ]  # fmt: skip
    extras = "select tags, attributes from items where item_id in ('29', '30') order by item_id"
    assert rows_of(engine, extras) == [
        (['"artsy"', "dark comedy"], {"imdb_id": "0112682", "tmdb_id": "902"}),
        ([], {"imdb_id": "0173732"}),
    ]


def test_ml_100k_is_latin_1_with_tabs_and_flags(engine: Engine, tmp_path: Path) -> None:
    report = import_movielens(engine, write_folder(tmp_path, ML_100K))

    assert rows_of(engine, ITEMS) == [("1", "Amélie", ["Comedy"], 2001), ("267", "unknown", ["Comedy"], None)]
    assert rows_of(engine, EVENTS) == [("196", "1", 3.0, 881250949), ("196", "267", 5.0, 881250950)]
    assert [(row.file, row.line, row.reason) for row in report.bad] == [("u.item", 3, "genre flag neither 0 nor 1")]
    attributes = value_of(engine, "select attributes from users")
    assert attributes == {"age": "49", "gender": "M", "occupation": "writer"}


def test_ml_1m_is_latin_1_with_double_colons(engine: Engine, tmp_path: Path) -> None:
    import_movielens(engine, write_zip(tmp_path / "ml-1m.zip", {f"ml-1m/{name}": it for name, it in ML_1M.items()}))

    assert rows_of(engine, ITEMS) == [("1", "Léon", ["Action", "Children's"], 1994)]
    assert rows_of(engine, EVENTS) == [("1", "1", 5.0, 978300760)]


def test_an_old_layout_that_somebody_saved_as_utf_8_reads_the_same(engine: Engine, tmp_path: Path) -> None:
    saved_again = ML_1M | {"movies.dat": ML_1M["movies.dat"].decode("latin-1").encode("utf-8")}

    import_movielens(engine, write_folder(tmp_path, saved_again))

    assert rows_of(engine, ITEMS) == [("1", "Léon", ["Action", "Children's"], 1994)]


def test_optional_files_may_be_missing_or_empty(engine: Engine, tmp_path: Path) -> None:
    files = {"movies.csv.gz": ML_LATEST["movies.csv"], "ratings.csv": RATINGS_CSV, "tags.csv": b""}

    report = import_movielens(engine, write_folder(tmp_path, files))

    assert [file.file for file in report.files] == ["movies.csv", "ratings.csv"]
    assert report.of("ratings.csv").counts == {"stored": 3}


def test_a_header_alone_is_a_data_set_without_ratings(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, ML_LATEST | {"ratings.csv": b"userId,movieId,rating,timestamp\n"})

    report = import_movielens(engine, folder)

    assert report.of("ratings.csv").counts == {}
    assert import_movielens(engine, folder).nothing_to_do


def test_columns_are_found_by_their_names(engine: Engine, tmp_path: Path) -> None:
    ratings = b'\xef\xbb\xbftimestamp,"rating",userid,source,movieid\n964982703,4.5,1,web,29\n'

    report = import_movielens(engine, write_folder(tmp_path, ML_LATEST | {"ratings.csv": ratings}))

    assert report.rows_bad == 0
    assert rows_of(engine, EVENTS) == [("1", "29", 4.5, 964982703)]


def test_bad_csv_lines_are_reported(engine: Engine, tmp_path: Path) -> None:
    movies = ML_LATEST["movies.csv"] + (
        b"40,Unquoted, comma (1999),Drama\r\n"
        b'41,"Never closed (1999),Drama\r\n'
        b"42,Caf\xe9 (1999),Drama\r\n"
        b"43,Fine (1999),Drama\r\n"
    )
    tags = ML_LATEST["tags.csv"] + b"1,29,  ,1445714994\r\n"

    report = import_movielens(engine, write_folder(tmp_path, ML_LATEST | {"movies.csv": movies, "tags.csv": tags}))

    assert [(row.file, row.line, row.reason) for row in report.bad] == [
        ("movies.csv", 6, "not 3 fields"),
        ("movies.csv", 7, "quotes that do not close"),
        ("movies.csv", 8, "bytes that are not UTF-8"),
        ("tags.csv", 4, "empty tag"),
    ]
    assert value_of(engine, "select title from items where item_id = '43'") == "Fine"


def test_tags_that_come_later_join_those_there_are(engine: Engine, tmp_path: Path) -> None:
    import_movielens(engine, write_folder(tmp_path, ML_LATEST))
    more = ML_LATEST["tags.csv"] + b"3,29,zany,1445714994\r\n"

    import_movielens(engine, write_folder(tmp_path, ML_LATEST | {"tags.csv": more}))

    tags = value_of(engine, "select tags from items where item_id = '29'")
    assert tags == ['"artsy"', "dark comedy", "zany"]


def test_what_is_no_movielens_says_what_was_looked_for(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"looked for u\.data .*, ratings\.dat .*, ratings\.csv .* it holds notes\.txt"):
        import_movielens(engine, write_folder(tmp_path, {"notes.txt": b"x"}))


def test_a_csv_without_its_header_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"ratings\.csv: its first line should be userId,movieId,rating,timestamp"):
        import_movielens(engine, write_folder(tmp_path, ML_LATEST | {"ratings.csv": b"1,29,4.5,964982703\n"}))


def test_two_layouts_in_one_folder_are_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="more than one"):
        import_movielens(engine, write_folder(tmp_path, ML_LATEST | ML_100K))


@pytest.mark.skipif(not REAL.is_dir(), reason="ml-latest-small may not be redistributed and is not at hand")
def test_the_real_ml_latest_small_comes_in_whole(engine: Engine) -> None:
    report = import_movielens(engine, REAL)

    assert report.rows_bad == 0
    assert report.of("ratings.csv").counts == {"stored": 100_836}
    counts = "select (select count(*) from users), count(*), count(published_at), max(published_at) from items"
    users, items, dated, newest = rows_of(engine, counts)[0]
    assert (users, items) == (610, 9_742)
    assert (dated, newest) == (9_730, datetime(2018, 1, 1, tzinfo=UTC))
    tagged = "select count(*), sum(cardinality(tags)) from items where tags <> '{}'"
    assert rows_of(engine, tagged) == [(1_572, 3_574)]
