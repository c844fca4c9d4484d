"""API keys: replaced by others with a time to change over, and what that leaves behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from app.errors import Invalid, NotFound
from app.settings import Settings
from app.storage import keys
from app.storage.keys import KeyRing, Rotated

HOUR = timedelta(hours=1)


@pytest.fixture
def key(engine: Engine) -> str:
    with engine.begin() as db:
        return keys.create(db, actor="tests", name="app", scopes=["read", "write"])


@pytest.fixture
def rotate(engine: Engine) -> Callable[..., Rotated]:
    def rotated(name: str = "app", grace: timedelta = HOUR) -> Rotated:
        with engine.begin() as db:
            return keys.rotate(db, actor="tests", name=name, grace=grace)

    return rotated


def ring(engine: Engine) -> KeyRing:
    with engine.connect() as db:
        return keys.load(db, Settings())


def row(engine: Engine, statement: str) -> Any:
    with engine.connect() as db:
        return db.execute(text(statement)).one()


def test_both_are_good_for_the_grace_and_open_the_same(
    engine: Engine, key: str, rotate: Callable[..., Rotated]
) -> None:
    rotated = rotate()
    known = ring(engine)
    old, new = known.find(key), known.find(rotated.key)
    assert old is not None
    assert new is not None
    assert old.name == new.name == "app"
    assert old.scopes == new.scopes == {"read", "write"}
    assert rotated.replaced == 1
    assert 3590 < old.ends_at - time.monotonic() <= 3600
    assert new.ends_at == float("inf")


def test_without_grace_the_old_one_is_over_at_once(engine: Engine, key: str, rotate: Callable[..., Rotated]) -> None:
    rotated = rotate(grace=timedelta())
    assert ring(engine).find(key) is None
    assert ring(engine).find(rotated.key) is not None


def test_a_key_that_was_loaded_before_its_end_ends_by_itself(
    engine: Engine, key: str, rotate: Callable[..., Rotated], monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate(grace=HOUR)
    loaded = ring(engine)
    assert loaded.find(key) is not None
    monkeypatch.setattr(keys, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 3_601))
    assert loaded.find(key) is None


def test_rotating_again_does_not_prolong_the_first(engine: Engine, key: str, rotate: Callable[..., Rotated]) -> None:
    rotate(grace=HOUR)
    assert rotate(grace=24 * HOUR).replaced == 2
    first = ring(engine).find(key)
    assert first is not None
    assert first.ends_at - time.monotonic() <= 3600


def test_workers_hear_of_it_and_the_audit_log_knows_no_key(
    engine: Engine, key: str, rotate: Callable[..., Rotated]
) -> None:
    before = row(engine, "select seq from versions where name = 'keys'").seq
    rotated = rotate()
    assert row(engine, "select seq from versions where name = 'keys'").seq == before + 1
    line = row(engine, "select * from audit_log where action = 'key.rotate'")
    assert (line.actor, line.subject, line.before) == ("tests", "key:app", {"keys": 1})
    assert line.after["scopes"] == ["read", "write"]
    assert key not in str(line)
    assert rotated.key not in str(line)


def test_revoking_ends_the_old_and_the_new(engine: Engine, key: str, rotate: Callable[..., Rotated]) -> None:
    rotated = rotate()
    with engine.begin() as db:
        assert keys.revoke(db, actor="tests", name="app") == 2
    assert ring(engine).find(key) is ring(engine).find(rotated.key) is None
    with pytest.raises(NotFound, match="app"):
        rotate()


def test_the_end_of_the_last_key_does_not_open_the_door(
    engine: Engine, key: str, rotate: Callable[..., Rotated]
) -> None:
    rotate(grace=timedelta())
    with engine.begin() as db:
        db.execute(text("delete from api_keys where expires_at is null"))
    assert ring(engine).keys == ()
    assert not ring(engine).is_open


def test_keys_of_the_environment_and_unknown_ones_are_refused(rotate: Callable[..., Rotated]) -> None:
    with pytest.raises(Invalid, match="restart"):
        rotate("SEGUE_ADMIN_KEY")
    with pytest.raises(NotFound, match="nobody"):
        rotate("nobody")
