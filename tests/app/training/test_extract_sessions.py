"""Postgres → Sessions: which listens belong together, and in which order."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text

from app.settings import DEFAULT_WEIGHTS
from app.training import extract_sessions as module
from app.training.extract import extract
from app.training.extract_sessions import extract_sessions
from models.data.sessions import Sessions
from tests.app.training.test_extract import NOON, add_items


def add_listens(db: Connection, *listens: tuple[str, str, str | None, float | None, int], kind: str = "listen") -> None:
    """Each is user, item, session, fraction and minutes after noon."""
    for user, item, session, fraction, minutes in listens:
        db.execute(text("insert into users (user_id) values (:u) on conflict do nothing"), {"u": user})
        statement = """
            insert into interactions (event_id, user_row, item_row, kind, value, timestamp, session_id)
            select gen_random_uuid()::text, users.row, items.row, :kind, :value, :at, :session
            from users, items where user_id = :u and item_id = :i
        """
        values = {"u": user, "i": item, "kind": kind, "value": fraction, "session": session}
        db.execute(text(statement), values | {"at": NOON + timedelta(minutes=minutes)})


def found(engine: Engine) -> Sessions | None:
    return extract_sessions(engine, extract(engine, DEFAULT_WEIGHTS))


def test_sessions_are_what_was_heard_in_them(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions by their beginnings, tracks by their times; what has no session or is no listen is left out."""
    monkeypatch.setattr(module, "FEWEST_SESSIONS", 1)
    with engine.begin() as db:
        add_items(db, "a", "b", "c", "d")
        add_listens(
            db, ("u", "b", "s2", 0.5, 20), ("v", "c", "s1", 1.0, 1), ("u", "a", "s2", 0.1, 10),
            ("v", "a", "s1", None, 30), ("v", "c", "s1", 0.8, 12), ("u", "d", None, 0.9, 2),
        )  # fmt: skip
        add_listens(db, ("u", "d", "s2", None, 15), kind="view")
    sessions = found(engine)
    assert sessions is not None
    assert sessions.tracks.tolist() == [2, 2, 0, 0, 1]
    assert sessions.bounds.tolist() == [0, 3, 5]
    np.testing.assert_allclose(sessions.fractions, [1.0, 0.8, np.nan, 0.1, 0.5])
    assert sessions.n_items == 4


def test_whose_a_session_and_whose_a_track_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_SESSIONS", 1)
    with engine.begin() as db:
        add_items(db, "a", "b", "c", "d")
        for artist, items in (("x", ["a", "d"]), ("y", ["c"])):
            db.execute(text("update items set creator = :x where item_id = any(:i)"), {"x": artist, "i": items})
        add_listens(db, ("u", "b", "s2", 0.5, 20), ("v", "c", "s1", 1.0, 1), ("u", "a", "s3", 0.1, 30))
    sessions = found(engine)
    assert sessions is not None
    assert sessions.users is not None
    assert sessions.artists is not None
    first, second, third = sessions.users.tolist()
    assert first != second == third
    a, b, c, d = sessions.artists.tolist()
    assert a == d != c
    assert b == -1 < min(a, c)


def test_too_few_sessions_are_none(engine: Engine) -> None:
    with engine.begin() as db:
        add_items(db, "a", "b")
        add_listens(db, ("u", "a", "s1", 1.0, 1), ("u", "b", "s1", 1.0, 2))
    assert found(engine) is None


def test_what_was_heard_before_an_erasure_is_not_learned(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_SESSIONS", 1)
    with engine.begin() as db:
        add_items(db, "a", "b")
        add_listens(db, ("u", "a", "s1", 1.0, 1), ("u", "b", "s2", 1.0, 20))
        tombstone = {"h": hashlib.sha256(b"u").digest(), "at": NOON + timedelta(minutes=10)}
        db.execute(text("insert into tombstones values (:h, :at)"), tombstone)
    sessions = found(engine)
    assert sessions is not None
    assert sessions.tracks.tolist() == [1]
