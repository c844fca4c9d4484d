"""MovieTweetings in: the bundled 100k whole, and small files with what real ones have in store."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from app.errors import Invalid
from app.importers.movietweetings import import_movietweetings
from tests.app.importers.datasets import (
    MOVIES_DAT,
    MOVIETWEETINGS,
    RATINGS_DAT,
    rows_of,
    value_of,
    write_folder,
    write_zip,
)

DEMO = Path(__file__).resolve().parents[3] / "demo" / "movietweetings-100k"
RATINGS_100K, USERS_100K, MOVIES_100K = 100_000, 16_554, 10_506
"""As the data set's snapshot claims."""


def test_the_bundled_data_set_comes_in_whole_and_ends_now_and_only_once(engine: Engine) -> None:
    first = import_movietweetings(engine, DEMO, shift_to_now=True)
    again = import_movietweetings(engine, DEMO, shift_to_now=True)

    assert first.of("ratings.dat").counts == {"stored": RATINGS_100K}
    assert first.rows_bad == 0
    assert again.nothing_to_do
    counts = rows_of(engine, "select (select count(*) from users), count(*), max(row) from items")
    assert counts == [(USERS_100K, MOVIES_100K, MOVIES_100K - 1)]
    assert value_of(engine, "select count(*) from interactions") == RATINGS_100K
    age = value_of(engine, "select extract(epoch from now() - max(timestamp))::float8 from interactions")
    assert isinstance(age, float)
    assert 0 <= age < 3_600


def test_a_rating_becomes_an_event_and_a_movie_an_item(engine: Engine, tmp_path: Path) -> None:
    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))

    items = "select item_id, kind, title, text, categories, published_at, tags from items order by item_id"
    assert rows_of(engine, items) == [
        ("0000001", "movie", "Heat", None, ["Action", "Crime"], datetime(1995, 1, 1, tzinfo=UTC), []),
        ("0000002", "movie", "Amélie", None, ["Comedy"], datetime(2001, 1, 1, tzinfo=UTC), []),
    ]
    events = """
        select event_id, user_id, item_id, i.kind, value, extract(epoch from timestamp)::int,
            received_at > now() - interval '1 minute'
        from interactions i join users on users.row = user_row join items on items.row = item_row order by seq
    """
    assert rows_of(engine, events) == [
        ("mt:1:0000001:1365029107", "1", "0000001", "rating", 3.5, 1365029107, True),
        ("mt:1:0000002:1366576639", "1", "0000002", "rating", 4.0, 1366576639, True),
        ("mt:2:0000001:1364690142", "2", "0000001", "rating", 5.0, 1364690142, True),
    ]
    assert value_of(engine, "select count(*) from event_ids") == 3


def test_it_reads_gzip_and_zip_and_a_folder_below(engine: Engine, tmp_path: Path) -> None:
    packed = {f"{name}.gz": content for name, content in MOVIETWEETINGS.items()}
    nested = {f"latest/{name}": content for name, content in MOVIETWEETINGS.items()}

    first = import_movietweetings(engine, write_folder(tmp_path / "a", packed))
    zipped = import_movietweetings(engine, write_zip(tmp_path / "b.zip", nested))
    below = import_movietweetings(engine, write_folder(tmp_path / "c" / "latest", MOVIETWEETINGS).parent)

    assert first.of("ratings.dat").counts == {"stored": 3}
    assert zipped.nothing_to_do
    assert below.nothing_to_do


def test_the_same_ratings_in_another_file_are_duplicates(engine: Engine, tmp_path: Path) -> None:
    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))
    longer = MOVIETWEETINGS | {"ratings.dat": RATINGS_DAT + RATINGS_DAT[:26] + b"3::0000001::1::1364690143\n"}

    report = import_movietweetings(engine, write_folder(tmp_path, longer))

    assert report.of("ratings.dat").counts == {"stored": 1, "duplicates": 4}
    assert value_of(engine, "select count(*) from interactions") == 4
    assert value_of(engine, "select max(row) from users") == 2


def test_what_was_shifted_once_stays_so(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS)

    first = import_movietweetings(engine, folder, shift_to_now=True)
    again = import_movietweetings(engine, folder)

    shift = first.of("ratings.dat").shift_seconds
    assert again.of("ratings.dat").shift_seconds == shift
    times = (
        "select distinct extract(epoch from timestamp)::float8 - split_part(event_id, ':', 4)::float8 from interactions"
    )
    assert rows_of(engine, times) == [(shift,)]
    newest = value_of(engine, "select extract(epoch from now() - max(timestamp))::float8 from interactions")
    assert isinstance(newest, float)
    assert 0 <= newest < 600


def test_a_shift_asked_for_too_late_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS)
    import_movietweetings(engine, folder)

    report = import_movietweetings(engine, folder, shift_to_now=True)

    assert report.of("ratings.dat").shift_seconds == 0
    assert value_of(engine, "select max(extract(epoch from timestamp))::int from interactions") == 1366576639


def test_a_movie_that_is_only_rated_is_a_bare_item(engine: Engine, tmp_path: Path) -> None:
    ratings = RATINGS_DAT + b"1::0000777::5::1365029108\n"

    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": ratings}))

    bare = "select kind, title, categories from items where item_id = '0000777'"
    assert rows_of(engine, bare) == [(None, None, [])]


def test_content_that_arrives_later_fills_the_item_and_keeps_its_row(engine: Engine, tmp_path: Path) -> None:
    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS | {"movies.dat": b"0000002::::\n"}))
    row = value_of(engine, "select row from items where item_id = '0000001'")
    version = value_of(engine, "select seq from versions where name = 'items'")

    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))

    assert rows_of(engine, "select row, title from items where item_id = '0000001'") == [(row, "Heat")]
    assert value_of(engine, "select seq from versions where name = 'items'") != version


def test_a_deleted_item_is_not_brought_back(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as db:
        db.execute(text("insert into items (item_id, deleted_at) values ('0000001', now())"))

    report = import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))

    assert report.of("movies.dat").counts == {"stored": 1, "deleted_items": 1}
    deleted = "select title, deleted_at is not null from items where item_id = '0000001'"
    assert rows_of(engine, deleted) == [(None, True)]


def test_erased_users_stay_erased(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as db:
        for user_id in ("1", "2"):
            tombstone = {"user_hash": hashlib.sha256(user_id.encode()).digest()}
            db.execute(text("insert into tombstones values (:user_hash, '2013-04-10T00:00:00Z')"), tombstone)
        # User 1 came back after the erasure; what was done since is not part of it.
        db.execute(text("insert into users (user_id) values ('1')"))

    report = import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))

    assert report.of("ratings.dat").counts == {"stored": 1, "erased_users": 2}
    assert rows_of(engine, "select event_id from interactions") == [("mt:1:0000002:1366576639",)]
    assert rows_of(engine, "select user_id from users") == [("1",)]


def test_views_of_users_pasts_in_redis_are_outdated_by_new_events_only(engine: Engine, tmp_path: Path) -> None:
    version = "select seq from versions where name = 'cache'"
    before = value_of(engine, version)
    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))
    after = value_of(engine, version)
    import_movietweetings(engine, write_folder(tmp_path, MOVIETWEETINGS))

    assert after != before
    assert value_of(engine, version) == after


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"movies.dat": MOVIES_DAT}, "lacks ratings.dat"),
        ({"ratings.dat": RATINGS_DAT, "notes.txt": b"x"}, "lacks movies.dat .* it holds notes.txt, ratings.dat"),
        ({"movies.dat": MOVIES_DAT, "ratings.dat": b""}, "ratings.dat is empty"),
        ({}, "it holds no files"),
    ],
)
def test_a_missing_or_empty_file_is_named(
    engine: Engine, tmp_path: Path, files: dict[str, bytes], complaint: str
) -> None:
    with pytest.raises(Invalid, match=complaint):
        import_movietweetings(engine, write_folder(tmp_path, files))
    assert value_of(engine, "select count(*) from items") == 0


def test_what_is_no_data_set_is_refused(engine: Engine, tmp_path: Path) -> None:
    plain = tmp_path / "ratings.dat"
    plain.write_bytes(RATINGS_DAT)
    with pytest.raises(Invalid, match=r"neither a folder nor a \.zip"):
        import_movietweetings(engine, plain)
    with pytest.raises(Invalid, match="does not exist"):
        import_movietweetings(engine, tmp_path / "nowhere")


def test_a_file_cut_short_in_its_packing_is_refused_before_anything_is_stored(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"movies.dat": MOVIES_DAT, "ratings.dat.gz": RATINGS_DAT * 100})
    whole = (folder / "ratings.dat.gz").read_bytes()
    (folder / "ratings.dat.gz").write_bytes(whole[:-20])

    with pytest.raises(Invalid, match=r"ratings\.dat\.gz can't be read"):
        import_movietweetings(engine, folder)
    assert value_of(engine, "select count(*) from interactions") == 0


def test_two_data_sets_in_one_folder_are_told_apart_by_the_user(engine: Engine, tmp_path: Path) -> None:
    write_folder(tmp_path / "a", MOVIETWEETINGS)
    write_folder(tmp_path / "b", MOVIETWEETINGS)
    with pytest.raises(Invalid, match="more than once"):
        import_movietweetings(engine, tmp_path)
