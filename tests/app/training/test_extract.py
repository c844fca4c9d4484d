"""Postgres → Dataset: what is in it, in which order, and what stays out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text

from app.feedback.weights import sign_of, weight_of
from app.settings import DEFAULT_WEIGHTS
from app.storage import copy_out
from app.storage.database import database_id
from app.training import extract as extract_module
from app.training.extract import Extracted, extract
from models.data.dataset import latest_per_pair

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def add_items(db: Connection, *item_ids: str) -> None:
    for item_id in item_ids:
        db.execute(text("insert into items (item_id) values (:id)"), {"id": item_id})


def add_events(db: Connection, events: Sequence[tuple[str, str, str, float | None, int]]) -> None:
    """Each is user, item, kind, value and minutes after noon; users are made where they are missing."""
    for number, (user, item, kind, value, minutes) in enumerate(events):
        db.execute(text("insert into users (user_id) values (:u) on conflict do nothing"), {"u": user})
        statement = """
            insert into interactions (event_id, user_row, item_row, kind, value, timestamp)
            select :e, users.row, items.row, :kind, :value, :at from users, items where user_id = :u and item_id = :i
        """
        values = {"e": f"e{number}", "u": user, "i": item, "kind": kind, "value": value}
        db.execute(text(statement), values | {"at": NOON + timedelta(minutes=minutes)})


def named(extracted: Extracted) -> list[tuple[int, str, float]]:
    """User position, item id and minutes after noon of every interaction, in order."""
    it = extracted.dataset.interactions
    minutes = (it.timestamps - NOON.timestamp()) / 60
    return [
        (int(user), extracted.item_ids[item], float(minute))
        for user, item, minute in zip(it.users, it.items, minutes, strict=True)
    ]


def test_an_empty_database_gives_an_empty_dataset(engine: Engine) -> None:
    found = extract(engine, DEFAULT_WEIGHTS)

    assert (len(found.dataset.interactions), found.dataset.n_items, found.dataset.n_users) == (0, 0, 0)
    assert found.window is None
    assert found.dataset.items.features.shape == (0, 0)
    assert found.dataset.interactions.users.dtype == np.int32


def test_interactions_come_in_time_order_and_ties_as_they_were_stored(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a", "b", "c")
        add_events(
            db,
            [
                ("u", "a", "view", None, 9),
                ("v", "b", "view", None, 3),
                ("u", "c", "view", None, 3),
                ("v", "a", "like", None, 1),
            ],
        )

    found = extract(engine, DEFAULT_WEIGHTS)

    assert named(found) == [(1, "a", 1.0), (1, "b", 3.0), (0, "c", 3.0), (0, "a", 9.0)]
    assert found.window == (NOON + timedelta(minutes=1), NOON + timedelta(minutes=9))
    assert found.dataset.ends_at == (NOON + timedelta(minutes=9)).timestamp()


def test_signs_weights_and_values_are_those_of_the_scalar_functions(engine: Engine) -> None:
    valued = [("rating", 5.0), ("rating", 3.5), ("rating", 0.5), ("rating", None), ("listen", 0.7), ("listen", 0.1)]
    kinds = (
        valued + [(kind, None) for kind in DEFAULT_WEIGHTS if kind not in ("rating", "impression")] + [("unlike", None)]
    )
    with engine.begin() as db:
        add_items(db, "a")
        add_events(db, [("u", "a", kind, value, minute) for minute, (kind, value) in enumerate(kinds)])

    it = extract(engine, DEFAULT_WEIGHTS).dataset.interactions

    assert it.signs.tolist() == [sign_of(*each) for each in kinds]
    expected = np.array([weight_of(kind, value, DEFAULT_WEIGHTS) for kind, value in kinds], np.float32)
    np.testing.assert_array_equal(it.weights, expected)
    given = np.array([np.nan if value is None else value for _, value in kinds], np.float32)
    np.testing.assert_array_equal(it.values, given)


def test_a_like_taken_back_leaves_the_item_seen_and_neither_liked_nor_disliked(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a")
        add_events(db, [("u", "a", "like", None, 1), ("u", "a", "unlike", None, 2)])

    it = extract(engine, DEFAULT_WEIGHTS).dataset.interactions

    latest = it.take(latest_per_pair(it))
    assert (latest.signs.tolist(), latest.weights.tolist()) == ([0], [0.0])


def test_deleted_items_stay_out(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a", "gone", "b", "unseen")
        add_events(db, [("v", "gone", "like", None, 2), ("w", "b", "like", None, 3)])
        db.execute(text("update items set deleted_at = now() where item_id = 'gone'"))
        rows = db.execute(text("select row from items where item_id <> 'gone' order by row")).scalars().all()
        user_row = db.execute(text("select row from users where user_id = 'w'")).scalar_one()

    found = extract(engine, DEFAULT_WEIGHTS)

    assert found.item_ids == ["a", "b", "unseen"]
    assert found.row_of_position.tolist() == rows
    assert named(found) == [(0, "b", 3.0)]
    assert (found.dataset.n_users, found.row_of_user.tolist()) == (1, [user_row])


def test_what_was_done_before_an_erasure_stays_out(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a", "b")
        add_events(
            db, [("back", "a", "like", None, 1), ("back", "b", "like", None, 3), ("other", "a", "like", None, 1)]
        )
        tombstone = {"h": hashlib.sha256(b"back").digest(), "at": NOON + timedelta(minutes=2)}
        db.execute(text("insert into tombstones values (:h, :at)"), tombstone)

    assert named(extract(engine, DEFAULT_WEIGHTS)) == [(1, "a", 1.0), (0, "b", 3.0)]


def test_a_clock_that_runs_ahead_is_overruled_by_the_receipt(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a", "b")
        add_events(db, [("u", "a", "view", None, 5), ("u", "b", "view", None, 3)])
        db.execute(text("update interactions set received_at = :noon where event_id = 'e0'"), {"noon": NOON})

    assert named(extract(engine, DEFAULT_WEIGHTS)) == [(0, "a", 0.0), (0, "b", 3.0)]


def test_since_is_included_and_until_is_not(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a")
        add_events(db, [("u", "a", "view", None, minute) for minute in range(5)])

    found = extract(engine, DEFAULT_WEIGHTS, since=NOON + timedelta(minutes=1), until=NOON + timedelta(minutes=3))

    assert [minute for _, _, minute in named(found)] == [1.0, 2.0]
    assert found.dataset.n_items == 1


def test_items_keep_everything_that_is_known_of_them(engine: Engine) -> None:
    with engine.begin() as db:
        db.execute(
            text("""
            insert into items (item_id, kind, title, text, categories, tags, creator, published_at, features) values
                ('a', 'post', 'Title', 'Body', '{x,y}', '{t}', 'me', '1969-12-31T23:59:59Z', '{0.5,-2,NaN}'),
                ('b', null, null, 'Body', '{}', '{}', null, null, null),
                ('c', null, 'Title', null, '{}', '{}', null, null, '{1,2}'),
                ('d', null, null, null, '{}', '{}', null, null, '{}'),
                ('e', null, null, null, '{}', '{}', null, null, '{3,4,5}')
            """)
        )

    items = extract(engine, DEFAULT_WEIGHTS).dataset.items

    assert items.texts == ["Title Body", "Body", "Title", "", ""]
    assert (items.categories[0], items.tags[0], items.creators[0], items.kinds[0]) == (("x", "y"), ("t",), "me", "post")
    np.testing.assert_array_equal(items.published, [-1.0, np.nan, np.nan, np.nan, np.nan])
    absent = [np.nan] * 3
    # The commonest length counts; vectors of another length can't stand in the same table.
    np.testing.assert_array_equal(items.features, [[0.5, -2, np.nan], absent, absent, absent, [3, 4, 5]])
    assert items.features.dtype == np.float32


def test_it_names_the_database(engine: Engine) -> None:
    with engine.connect() as db:
        expected = database_id(db)
    assert extract(engine, DEFAULT_WEIGHTS).database_id == expected


def test_rows_of_many_blocks_come_out_as_postgres_has_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_out, "_BLOCK_BYTES", 1_000)
    with engine.begin() as db:
        db.execute(text("insert into users (user_id) select 'u' || n from generate_series(0, 99) n"))
        db.execute(text("insert into items (item_id) select 'i' || n from generate_series(0, 49) n"))
        db.execute(
            text("""
            insert into interactions (event_id, user_row, item_row, kind, value, timestamp)
            select n, n % 100, n % 50, 'rating', n % 6, '2020-01-01'::timestamptz + n * interval '1.000001 s'
            from generate_series(0, 4999) n
            """)
        )
        told: list[float] = []
        expected = db.execute(
            text(
                "select user_row, item_row, value, extract(epoch from timestamp)::float8 from interactions order by seq"
            )
        ).all()

    it = extract(engine, DEFAULT_WEIGHTS, progress=lambda _, fraction: told.append(fraction)).dataset.interactions

    np.testing.assert_array_equal(it.users, [row[0] for row in expected])
    np.testing.assert_array_equal(it.items, [row[1] for row in expected])
    np.testing.assert_array_equal(it.values, [row[2] for row in expected])
    np.testing.assert_allclose(it.timestamps, [row[3] for row in expected], rtol=0, atol=1e-6)
    assert told[-1] == 1.0
    assert all(0 <= fraction <= 1 for fraction in told)


def test_everything_is_as_of_one_moment(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine.begin() as db:
        add_items(db, "a")
        add_events(db, [("u", "a", "view", None, 1)])
    items_of = extract_module._items

    def items_and_then_a_write(*arguments: object) -> object:
        found = items_of(*arguments)  # type: ignore[arg-type]
        with engine.begin() as db:
            add_items(db, "late")
            db.execute(text("delete from interactions"))
            add_events(db, [("late", "late", "view", None, 2)])
        return found

    monkeypatch.setattr(extract_module, "_items", items_and_then_a_write)

    assert named(extract(engine, DEFAULT_WEIGHTS)) == [(0, "a", 1.0)]


def test_a_null_where_none_may_be_is_an_error_and_not_garbage(engine: Engine) -> None:
    dtype = np.dtype([("n", np.int32), ("m", np.int32)])
    with engine.connect() as db:
        with pytest.raises(ValueError, match="a null, or a column of another width"):
            copy_out.copy_out(db, "select 1, null::int4 union all select 2, 3", {}, dtype)
        with pytest.raises(ValueError, match="a null, or a column of another width"):
            copy_out.copy_out(db, "select 1::int8, 2", {}, dtype)
