"""What can't be imported is refused with file, line and reason, counted, and keeps nothing else from coming in."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Engine

from app.importers.files import LONGEST_LINE
from app.importers.movietweetings import import_movietweetings
from app.importers.report import BAD_ROWS_KEPT
from tests.app.importers.datasets import MOVIES_DAT, MOVIETWEETINGS, rows_of, value_of, write_folder

GOOD = b"9::0000001::5::1365029107\n"

BAD_RATINGS = [
    (b"1::0000001::7", "not 4 fields"),
    (b"1::0000001::7::1365029107::x", "not 4 fields"),
    (b"1::0000001::seven::1365029107", "rating is not a number"),
    (b"1::0000001::1_0::1365029107", "rating is not a number"),
    (b"1::0000001::11::1365029107", "rating outside 0–10"),
    (b"1::0000001::-1::1365029107", "rating outside 0–10"),
    (b"1::0000001::nan::1365029107", "rating outside 0–10"),
    (b"1::0000001::7::yesterday", "timestamp is not a number"),
    (b"1::0000001::7::-5", "timestamp before 1970"),
    (b"1::0000001::7::nan", "timestamp before 1970"),
    (b"1::0000001::7::%d" % (time.time() + 86_400), "timestamp in the future"),
    (b"1::0000001::7::inf", "timestamp in the future"),
    (b"::0000001::7::1365029107", "no user id"),
    (b"  ::0000001::7::1365029107", "no user id"),
    (b"1::::7::1365029107", "no movie id"),
    (b"a/b::0000001::7::1365029107", "'/' in the user id"),
    (b"a\x01b::0000001::7::1365029107", "control character in the user id"),
    ("a\x85b::0000001::7::1365029107".encode(), "control character in the user id"),
    (b"a\x00b::0000001::7::1365029107", "NUL byte"),
    (b"caf\xe9::0000001::7::1365029107", "bytes that are not UTF-8"),
    (b"u" * 129 + b"::0000001::7::1365029107", "user id longer than 128 characters"),
    (b"u" * (3 * LONGEST_LINE), "line too long"),
]


def test_every_bad_row_is_reported_and_the_good_ones_come_in(engine: Engine, tmp_path: Path) -> None:
    lines = b"".join(line + b"\n" for line, _ in BAD_RATINGS)
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": GOOD + lines + b"\n\r\n" + GOOD[:-8] + b"029108"})

    report = import_movietweetings(engine, folder).of("ratings.dat")

    expected = [("ratings.dat", number, reason) for number, (_, reason) in enumerate(BAD_RATINGS, 2)]
    assert [(row.file, row.line, row.reason) for row in report.bad] == expected
    assert report.bad_by_reason.total() == len(BAD_RATINGS)
    assert report.bad_by_reason["not 4 fields"] == 2
    assert report.counts == {"stored": 2}
    assert rows_of(engine, "select distinct user_id from users") == [("9",)]


def test_a_report_keeps_the_first_bad_rows_and_counts_all(engine: Engine, tmp_path: Path) -> None:
    count = BAD_ROWS_KEPT + 50
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": b"nonsense\n" * count + GOOD})

    report = import_movietweetings(engine, folder, lines_per_chunk=30)

    assert [row.line for row in report.bad] == list(range(1, BAD_ROWS_KEPT + 1))
    assert report.rows_bad == count
    assert value_of(engine, "select rows_bad from imports where source = 'movietweetings/ratings.dat'") == count
    assert f"refused {count}: not 4 fields" in report.summary()
    assert "ratings.dat:1: not 4 fields" in report.summary()


def test_a_finished_file_still_tells_what_was_refused(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": b"nonsense\n" + GOOD})
    import_movietweetings(engine, folder)

    again = import_movietweetings(engine, folder)

    assert again.nothing_to_do
    assert again.of("ratings.dat").bad_by_reason == {"not 4 fields": 1}


def test_strange_ids_that_the_contract_allows_come_in_unchanged(engine: Engine, tmp_path: Path) -> None:
    strange = ["\\N", "\\.", "a\\tb", "o'Neill", '"quoted"', "Ünïcode", "🎬", "a b", "u" * 128, "{1,2}", "a:b"]
    lines = "".join(f"{user}::0000001::5::1365029107\n" for user in strange)

    report = import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": lines.encode()}))

    assert report.rows_bad == 0
    assert {user for (user,) in rows_of(engine, "select user_id from users")} == set(strange)


def test_bad_movies_are_reported_and_odd_titles_come_in(engine: Engine, tmp_path: Path) -> None:
    movies = MOVIES_DAT + (
        b"\xef\xbb\xbf0000003::A::B (1999)::Drama\n"
        b"0000004::No year at all::Drama|Drama| \n"
        b"0000005::\\N back\\slash \t{tab} (2000-)::\r\n"
        b"0000006::2001 (9999)::Drama\n"
        b"0000007::Cut off\n"
        b"::No id (1999)::Drama\n"
        b"0000008::N\x00L (1999)::Drama\n"
        b"0000009::Caf\xe9 (1999)::Drama\n"
        b"0000001::Heat, again (1996)::Crime\n"
    )

    report = import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS | {"movies.dat": movies}))

    assert [(row.line, row.reason) for row in report.bad] == [
        (7, "not 3 fields"), (8, "no movie id"), (9, "NUL byte"), (10, "bytes that are not UTF-8"),
    ]  # fmt: skip
    titles = """
        select item_id, title, categories, extract(year from published_at)::int from items
        where item_id <> '0000002' order by item_id
    """
    assert rows_of(engine, titles) == [
        ("0000001", "Heat, again", ["Crime"], 1996),
        ("0000003", "A::B", ["Drama"], 1999),
        ("0000004", "No year at all", ["Drama"], None),
        ("0000005", "\\N back\\slash \t{tab}", [], 2000),
        ("0000006", "2001 (9999)", ["Drama"], None),
    ]
