"""A backup of servers that are in use, and its way back into a data folder: all of it, or nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

from app.catalog import versions
from app.catalog.users import hash_of
from app.cli import storage
from app.erasure import erase_user
from app.errors import SegueError
from app.feedback.dirty_marks import ViewWriter
from app.storage.database import migrate, open_engine
from app.storage.embedded import EmbeddedServers, EmbeddedServersError, backup, embedded_servers
from app.storage.redis import open_sync
from tests.app.storage.holders import cache, query

Segue = Callable[..., str]
RELEASE = "2026-01-01T00-00-00Z-abcd"


@pytest.fixture
def served(data_dir: Path) -> Iterator[EmbeddedServers]:
    """Servers with a migrated database, one user in it, and a release."""
    with embedded_servers(data_dir) as servers:
        migrate(servers.database_url)
        query(servers, "INSERT INTO users (user_id) VALUES ('ann')")
        (data_dir / "releases" / RELEASE / "part").mkdir(parents=True)
        (data_dir / "releases" / RELEASE / "part" / "factors.npy").write_bytes(b"numbers")
        (data_dir / "releases" / ".unfinished.partial").mkdir()
        (data_dir / "releases" / "current").write_text(RELEASE)
        yield servers


@pytest.fixture
def segue(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Segue:
    """`segue` with this data folder and no servers but its own: what it says, on one line; errors too."""
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(data_dir: Path, command: Callable[..., None], *arguments: object, **options: object) -> str:
        monkeypatch.setenv("SEGUE_DATA_DIR", str(data_dir))
        capsys.readouterr()
        try:
            command(*arguments, **options)
        except SegueError as error:
            return f"error: {error.detail}"
        printed = capsys.readouterr()
        return printed.out + " ".join(printed.err.split())

    return run


def table(servers: EmbeddedServers, statement: str) -> list[Any]:
    engine = open_engine(servers.database_url)
    with engine.connect() as db:
        found = list(db.execute(text(statement)).scalars())
    engine.dispose()
    return found


def epochs(servers: EmbeddedServers) -> dict[str, str]:
    engine = open_engine(servers.database_url)
    with engine.connect() as db:
        found = versions.read(db)
    engine.dispose()
    return found


@contextmanager
def writing(servers: EmbeddedServers) -> Iterator[Callable[[], list[int]]]:
    """Another client commits numbers one by one; what it answers are those acknowledged by then."""
    acknowledged: list[int] = []
    over = threading.Event()

    def write() -> None:
        with psycopg2.connect(servers.database_url) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            while not over.is_set():
                cursor.execute("INSERT INTO event_ids (event_id) VALUES (%s)", (f"e{len(acknowledged)}",))
                acknowledged.append(len(acknowledged))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: list(acknowledged)
    finally:
        over.set()
        thread.join()


def test_all_that_was_acknowledged_before_it_began_comes_back_and_redis_does_not(
    served: EmbeddedServers, segue: Segue, data_dir: Path, tmp_path: Path
) -> None:
    """And the database begins a new life, as the same database."""
    with cache(served) as client:
        client.set("answer", "42")
    query(served, "INSERT INTO jobs (job_id, kind) VALUES ('train-1', 'train')")
    with writing(served) as acknowledged:
        before = acknowledged()
        said = segue(data_dir, storage.backup, tmp_path / "backups" / "monday")
        assert len(acknowledged()) > len(before), "nobody wrote meanwhile"
    assert "monday" in said
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["monday"]
    query(served, "INSERT INTO users (user_id) VALUES ('too-late')")
    identity, old = table(served, "SELECT database_id FROM database_identity"), epochs(served)

    restored_dir = data_dir / "restored"
    said = segue(restored_dir, storage.restore, tmp_path / "backups" / "monday")
    assert "erased since are back" in said
    assert sorted(path.name for path in restored_dir.iterdir()) == ["embedded", "releases"]
    with embedded_servers(restored_dir) as servers, cache(servers) as client:
        stored = {int(each[1:]) for each in table(servers, "SELECT event_id FROM event_ids")}
        assert stored >= set(before)
        assert stored == set(range(len(stored))), "a later one without an earlier one"
        assert table(servers, "SELECT user_id FROM users") == ["ann"]
        assert table(servers, "SELECT database_id FROM database_identity") == identity
        assert table(servers, "SELECT status FROM jobs") == ["failed"]
        assert table(servers, "SELECT action FROM audit_log") == ["database.restored"]
        new = epochs(servers)
        assert old.keys() == new.keys()
        assert not {each.partition(":")[0] for each in old.values()} & {each.partition(":")[0] for each in new.values()}
        assert client.keys("*") == []
    release = restored_dir / "releases" / RELEASE / "part" / "factors.npy"
    assert release.read_bytes() == b"numbers"
    assert (restored_dir / "releases" / "current").read_text() == RELEASE


def test_data_that_is_there_is_replaced_only_when_told_and_who_was_erased_in_it_stays_erased(
    served: EmbeddedServers, segue: Segue, data_dir: Path, tmp_path: Path
) -> None:
    query(served, "INSERT INTO users (user_id) VALUES ('bob')")
    segue(data_dir, storage.backup, tmp_path / "b")
    other = data_dir / "other"
    segue(other, storage.restore, tmp_path / "b")
    with embedded_servers(other) as servers:
        query(servers, "INSERT INTO users (user_id) VALUES ('too-late')")
        engine, client = open_engine(servers.database_url), open_sync(servers.redis_url, timeout_seconds=5)
        erase_user(engine, ViewWriter(client, ttl_seconds=60, settle_seconds=0), "ann")
        client.close()
        engine.dispose()
        listed = segue(other, storage.list_erasures)
        assert "in use" in segue(other, storage.restore, tmp_path / "b", replace=True)
    assert "--replace" in segue(other, storage.restore, tmp_path / "b")
    said = segue(other, storage.restore, tmp_path / "b", replace=True)
    assert "replaced-" in said
    assert "1 users who had been erased" in said
    [put_aside] = other.glob("replaced-*")
    assert {path.name for path in put_aside.iterdir()} == {"embedded", "releases"}
    with embedded_servers(other) as servers:
        assert table(servers, "SELECT user_id FROM users") == ["bob"]

    # A list that was kept does the same, and leaves who came back on purpose since.
    assert len(listed.splitlines()) == 1
    (tmp_path / "erased").write_text(listed)
    assert "1 users erased again" in segue(data_dir, storage.apply_erasures, tmp_path / "erased")
    query(served, "INSERT INTO users (user_id) VALUES ('ann')")
    assert "0 users erased again" in segue(data_dir, storage.apply_erasures, tmp_path / "erased")
    assert table(served, "SELECT user_id FROM users ORDER BY 1") == ["ann", "bob"]


def test_what_is_damaged_is_refused_before_anything_is_written(
    served: EmbeddedServers, segue: Segue, data_dir: Path, tmp_path: Path
) -> None:
    made, other = tmp_path / "b", data_dir / "other"
    segue(data_dir, storage.backup, made)
    database = next(path for path in (made / "postgres" / "base").rglob("*") if path.stat().st_size > 100_000)
    for spoilt in (made / "releases" / "current", database, made / "releases" / RELEASE / "part" / "factors.npy"):
        kept = spoilt.read_bytes()
        spoilt.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        assert spoilt.name in segue(other, storage.restore, made)
        spoilt.write_bytes(kept)
    manifest = (made / "backup.json").read_text()
    (made / "backup.json").write_text(json.dumps(json.loads(manifest) | {"format": 99}))
    assert "format 99" in segue(other, storage.restore, made)
    (made / "backup.json").unlink()
    assert "not a finished backup" in segue(other, storage.restore, made)
    assert not other.exists()

    # Mended, and over what an interrupted restore left, it is taken; and who is listed is erased on the way.
    (made / "backup.json").write_text(manifest)
    (other / ".restoring-dead" / "embedded").mkdir(parents=True)
    (tmp_path / "erased").write_text(f"{hash_of('ann').hex()} {datetime.now(UTC).isoformat()}\n")
    assert "1 users who" in segue(other, storage.restore, made, erasures=tmp_path / "erased")
    assert sorted(path.name for path in other.iterdir()) == ["embedded", "releases"]


def test_what_is_interrupted_leaves_nothing_and_what_is_there_is_left_alone(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with embedded_servers(data_dir) as servers:
        monkeypatch.setattr(backup, "_copy_releases", full)
        with pytest.raises(OSError, match="no space"):
            backup.make(servers, data_dir / "releases", "an id", tmp_path / "b")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "b").mkdir()
        with pytest.raises(EmbeddedServersError, match="exists"):
            backup.make(servers, data_dir / "releases", "an id", tmp_path / "b")


def test_somebody_elses_postgres_is_left_to_its_own_tools(
    segue: Segue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example.com/x")
    for command in (storage.backup, storage.restore):
        assert "segue restored" in segue(tmp_path, command, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
