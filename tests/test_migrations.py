"""The migrations, on a real Postgres: from nothing, down again, and equal to the tables that the code declares."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command, op
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from app.feedback.dirty_marks import ERASURE_LOCK
from app.feedback.event_log import store
from app.storage.database import MIGRATIONS, migrate, open_engine
from app.storage.tables import metadata
from tests.app.feedback.examples import an_event


@pytest.fixture
def spoiled(new_database: Callable[[], str]) -> str:
    """A migrated database whose schema the test may change."""
    return new_database()


def config(url: str) -> Config:
    found = Config()
    found.set_main_option("script_location", str(MIGRATIONS))
    found.attributes["url"] = url
    return found


@pytest.mark.filterwarnings("ignore:Did not recognize type 'xid8'")
def test_the_migrated_schema_is_the_declared_one(spoiled: str) -> None:
    engine = open_engine(spoiled)
    with engine.connect() as db:
        context = MigrationContext.configure(db, opts={"compare_server_default": True})
        differences = [found for found in compare_metadata(context, metadata) if not _is_about_xid8(found)]
    engine.dispose()
    assert differences == []


def _is_about_xid8(difference: object) -> bool:
    """SQLAlchemy can't reflect the type xid8, nor hence compare it."""
    return "Xid8" in repr(difference)


def test_down_leaves_nothing_and_up_again_works(spoiled: str) -> None:
    command.downgrade(config(spoiled), "base")
    engine = open_engine(spoiled)
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    migrate(spoiled)
    assert set(inspect(engine).get_table_names()) == {"alembic_version", *metadata.tables}
    engine.dispose()


def test_migrating_twice_changes_nothing(spoiled: str) -> None:
    engine = open_engine(spoiled)
    with engine.connect() as db:
        before = db.execute(text("select database_id from database_identity")).scalar_one()
    migrate(spoiled)
    with engine.connect() as db:
        assert db.execute(text("select database_id from database_identity")).scalar_one() == before
    engine.dispose()


def test_impressions_stored_with_the_interactions_move_out_and_back(spoiled: str) -> None:
    command.downgrade(config(spoiled), "0002")
    engine = open_engine(spoiled)
    with engine.begin() as db:
        db.execute(text("insert into users (user_id) values ('ann')"))
        db.execute(text("insert into items (item_id) values ('dune')"))
        db.execute(
            text(
                "insert into interactions (event_id, user_row, item_row, kind, timestamp, request_id) values"
                " ('e1', 0, 0, 'view', now(), null), ('e2', 0, 0, 'impression', now(), 'r')"
            )
        )
    migrate(spoiled)
    with engine.connect() as db:
        assert db.execute(text("select event_id from interactions")).scalars().all() == ["e1"]
        assert db.execute(text("select seq, event_id, request_id from on_screen")).one() == (2, "e2", "r")
    command.downgrade(config(spoiled), "0002")
    with engine.connect() as db:
        moved = db.execute(text("select seq, kind, request_id from interactions order by seq")).all()
    engine.dispose()
    assert [tuple(row) for row in moved] == [(1, "view", None), (2, "impression", "r")]


def test_the_index_of_pasts_is_built_while_events_are_stored(spoiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stores holds `users` and wants `interactions`, and the migration had them the other way round."""
    command.downgrade(config(spoiled), "0007")
    engine, building, errors = open_engine(spoiled), threading.Event(), []
    build = op.create_index

    def while_one_is_stored(*arguments: Any, **options: Any) -> None:
        build(*arguments, **options)
        building.set()
        # Longer than Postgres waits before it looks for a deadlock.
        op.execute("select pg_sleep(2)")

    def one_more() -> None:
        building.wait(60)
        try:
            with engine.begin() as db:
                db.execute(text("select pg_advisory_xact_lock_shared(:lock)"), {"lock": ERASURE_LOCK})
                store(db, [[an_event(event_id="beside")]], auto_create=True)
        except DBAPIError as error:
            errors.append(error)

    monkeypatch.setattr(op, "create_index", while_one_is_stored)
    writer = threading.Thread(target=one_more)
    writer.start()
    migrate(spoiled)
    writer.join()
    with engine.connect() as db:
        assert db.execute(text("select event_id from interactions")).scalars().all() == ["beside"]
    engine.dispose()
    assert errors == []


def test_what_a_build_that_was_cut_short_left_is_not_taken_for_the_index(spoiled: str) -> None:
    command.downgrade(config(spoiled), "0007")
    engine = open_engine(spoiled)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        db.execute(text("insert into users (user_id) values ('ann')"))
        db.execute(text("insert into items (item_id) values ('dune')"))
        for event_id in "ab":
            columns = "(event_id, user_row, item_row, kind, timestamp)"
            db.execute(text(f"insert into interactions {columns} values (:e, 0, 0, 'view', now())"), {"e": event_id})
        with pytest.raises(DBAPIError, match="could not create unique index"):
            db.execute(text("create unique index concurrently ix_interactions_past on interactions (kind)"))
        migrate(spoiled)
        is_good = "select indisvalid and indnatts = 3 from pg_index where indexrelid = 'ix_interactions_past'::regclass"
        assert db.scalar(text(is_good))
    engine.dispose()


def test_there_is_one_line_of_migrations() -> None:
    script = ScriptDirectory(str(Path(MIGRATIONS)))
    assert len(script.get_heads()) == 1
    assert len(script.get_bases()) == 1
