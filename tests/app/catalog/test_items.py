"""What workers rely on when an item is written."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from app.catalog import items, versions
from app.catalog.items import Item
from app.errors import NotFound


def changed_xid(engine: Engine) -> int:
    with engine.connect() as db:
        return int(db.execute(text("SELECT changed_xid::text FROM items WHERE item_id = 'dune'")).scalar_one())


def deletions(engine: Engine) -> str:
    with engine.connect() as db:
        return versions.read(db)["deletions"]


def test_every_write_notes_its_transaction(engine: Engine) -> None:
    seen = []
    for write in (
        lambda db: items.put(db, [Item("dune", title="Dune")]),
        lambda db: items.put(db, [Item("dune")]),
        lambda db: items.patch(db, "dune", {"tags": ["sand"]}),
        lambda db: items.delete(db, "dune"),
        lambda db: items.put(db, [Item("dune")]),
    ):
        with engine.begin() as db:
            write(db)
            own = int(db.execute(text("SELECT pg_current_xact_id()::text")).scalar_one())
        assert changed_xid(engine) == own
        seen.append(own)
    assert seen == sorted(set(seen))


def test_deleting_clears_the_content_and_keeps_the_row(engine: Engine) -> None:
    with engine.begin() as db:
        items.put(db, [Item("dune", "film", "Dune", "Sand.", ["SF"], ["worm"], "Herbert", None, [1.0], {"a": 1})])
    before = deletions(engine)
    with engine.begin() as db:
        items.delete(db, "dune")
        row = db.execute(text("SELECT * FROM items")).one()
    assert deletions(engine) != before
    assert (row.row, row.item_id) == (0, "dune")
    assert (row.kind, row.title, row.text, row.categories, row.tags) == (None, None, None, [], [])
    assert (row.creator, row.features, row.attributes) == (None, None, {})
    with engine.begin() as db:
        assert items.put(db, [Item("dune"), Item("emma")]) == 2
        assert db.execute(text("SELECT row FROM items WHERE item_id = 'dune' AND deleted_at IS NULL")).scalar_one() == 0


def test_a_deleted_item_is_not_found(engine: Engine) -> None:
    with engine.begin() as db:
        items.put(db, [Item("dune")])
        items.delete(db, "dune")
        for use in (items.get, items.delete):
            with pytest.raises(NotFound, match="'dune'"):
                use(db, "dune")
