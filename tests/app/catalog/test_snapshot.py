"""The catalogue in memory against the catalogue in Postgres, change by change."""

import numpy as np
from sqlalchemy import Engine, text

from app.catalog.snapshot import CatalogSnapshot, refresh

INSERT = "insert into items (item_id, kind, creator, categories) values (:id, :kind, :creator, :categories)"
TOUCH = ", changed_xid = pg_current_xact_id() where item_id = :id"


def add(engine: Engine, item_id: str, *categories: str, kind: str | None = None, creator: str | None = None) -> None:
    run(engine, INSERT, id=item_id, kind=kind, creator=creator, categories=list(categories))


def run(engine: Engine, statement: str, **values: object) -> None:
    with engine.begin() as db:
        db.execute(text(statement), values)


def refreshed(engine: Engine, old: CatalogSnapshot | None = None) -> tuple[CatalogSnapshot, list[str]]:
    with engine.connect() as db:
        snapshot, changed = refresh(db, old or CatalogSnapshot.empty())
    return snapshot, [snapshot.ids[row] for row in changed]


def named(snapshot: CatalogSnapshot, mask: np.ndarray) -> set[str]:
    return {snapshot.ids[row] for row in np.flatnonzero(mask)}


def test_filters_agree_with_what_was_stored(engine: Engine) -> None:
    add(engine, "a", "Drama", "War", kind="movie", creator="X")
    add(engine, "b", "Drama", kind="post")
    add(engine, "c", kind="movie", creator="Y")
    snapshot, _ = refreshed(engine)
    assert named(snapshot, snapshot.mask()) == {"a", "b", "c"}
    assert named(snapshot, snapshot.mask(categories=["Drama"])) == {"a", "b"}
    assert named(snapshot, snapshot.mask(categories=["War", "Drama"])) == {"a", "b"}
    assert named(snapshot, snapshot.mask(categories=["Drama"], kind="movie")) == {"a"}
    assert named(snapshot, snapshot.mask(creator="Y")) == {"c"}
    assert named(snapshot, snapshot.mask(kind="unheard of")) == set()
    assert named(snapshot, snapshot.mask(categories=["unheard of"])) == set()


def test_a_refresh_brings_what_is_new_changed_and_deleted_and_nothing_else(engine: Engine) -> None:
    for name in "abc":
        add(engine, name, "Old")
    first, _ = refreshed(engine)
    add(engine, "d", "New")
    run(engine, "update items set categories = '{New}'" + TOUCH, id="a")
    run(engine, "update items set deleted_at = now()" + TOUCH, id="b")
    second, changed = refreshed(engine, first)
    assert set(changed) == {"a", "b", "d"}
    assert named(second, second.mask(categories=["New"])) == {"a", "d"}
    assert named(second, second.mask(categories=["Old"])) == {"c"}
    assert second.row("b") is None
    assert named(first, first.mask(categories=["Old"])) == {"a", "b", "c"}, "the old snapshot stays as it was"
    assert refreshed(engine, second)[1] == []


def test_a_transaction_that_commits_late_is_not_missed(engine: Engine) -> None:
    with engine.begin() as slow:
        slow.execute(text(INSERT), {"id": "late", "kind": None, "creator": None, "categories": []})
        add(engine, "early")
        snapshot, changed = refreshed(engine)
        assert changed == ["early"]
    snapshot, changed = refreshed(engine, snapshot)
    assert changed == ["late"]
    assert snapshot.row("late") is not None


def test_an_item_whose_text_alone_changed_is_among_the_changed(engine: Engine) -> None:
    add(engine, "a", "Drama")
    first, _ = refreshed(engine)
    run(engine, "update items set text = 'a heist in Rome'" + TOUCH, id="a")
    assert refreshed(engine, first)[1] == ["a"]
