"""Rows are given once, to the ids that need one, by however many writers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

from app.catalog.rows import allocate_items, allocate_users, find_items, find_users


def test_finding_creates_nothing(engine: Engine) -> None:
    with engine.begin() as db:
        assert find_items(db, ["dune"]) == {}
        assert find_users(db, []) == {}
        assert allocate_items(db, ["dune"]) == {"dune": 0}
        assert find_items(db, ["dune", "emma"]) == {"dune": 0}


def test_rows_are_dense_whatever_is_asked_again(engine: Engine) -> None:
    with engine.begin() as db:
        first = allocate_users(db, ["b", "a", "b"])
    with engine.begin() as db:
        second = allocate_users(db, ["c", "a", "b"])
    assert first == {"a": 0, "b": 1}
    assert second == {"a": 0, "b": 1, "c": 2}


def test_writers_with_overlapping_ids_agree(engine: Engine) -> None:
    ids = [f"i{n}" for n in range(300)]

    def allocate(start: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for some in (ids[start : start + 100], ids[start + 50 : start + 150][::-1]):
            with engine.begin() as db:
                found |= allocate_items(db, some)
        return found

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(allocate, (0, 150, 75, 30, 120, 60)))
    merged: dict[str, int] = {}
    for rows in answers:
        for item_id, row in rows.items():
            assert merged.setdefault(item_id, row) == row
    assert len(set(merged.values())) == len(merged) == 300
