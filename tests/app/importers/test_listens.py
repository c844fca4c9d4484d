"""Listening logs in: CSV and Parquet, with ids alone or with all that a player knows, and the real #nowplaying."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from sqlalchemy import Engine

from app.errors import Invalid
from app.importers.listens import import_listens
from app.importers.sessions import import_sessions
from app.importers.tables import table
from tests.app.importers.datasets import rows_of, value_of

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "music" / "nowplaying-sessions" / "sessions.parquet"

LISTENS = (
    b"user,session,track,artist,time,fraction\n"
    b'ann,s1,t1,"Simon, Paul",1700000000,0.5\n'
    b"ann,s1,t2,Bj\xc3\xb6rk,2023-11-14T22:20:00Z,1.2\n"
    b"bob,,t1,,1700000900,0\n"
)
EVENTS = """
    select user_id, item_id, i.kind, value, session_id, extract(epoch from timestamp)::float8
    from interactions i join users on users.row = user_row join items on items.row = item_row order by seq
"""
EXPECTED = [
    ("ann", "t1", "listen", 0.5, "s1", 1_700_000_000.0),
    ("ann", "t2", "listen", 1.0, "s1", 1_700_000_400.0),
    ("bob", "t1", "listen", 0.0, None, 1_700_000_900.0),
]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["listens.csv", "listens.csv.gz"])
def test_listens_come_in_with_their_artists(engine: Engine, tmp_path: Path, name: str) -> None:
    report = import_listens(engine, write(tmp_path / name, LISTENS))
    assert rows_of(engine, EVENTS) == EXPECTED
    creators = rows_of(engine, "select item_id, creator, kind from items order by item_id")
    assert creators == [("t1", "Simon, Paul", "track"), ("t2", "Björk", "track")]
    assert report.rows_bad == 0


def test_a_second_import_of_the_same_file_has_nothing_to_do(engine: Engine, tmp_path: Path) -> None:
    path = write(tmp_path / "listens.csv", LISTENS)
    import_listens(engine, path)
    assert import_listens(engine, path).nothing_to_do
    again = import_listens(engine, write(tmp_path / "more.csv", LISTENS + b"ann,s1,t3,,1700000500,0.9\n"))
    assert again.of("more.csv").counts["duplicates"] == 3
    assert value_of(engine, "select count(*) from interactions") == 4


def test_parquet_says_the_same_as_csv(engine: Engine, tmp_path: Path) -> None:
    columns = {
        "track": ["t1", "t2", "t1"],
        "user": ["ann", "ann", "bob"],
        "artist": ["Simon, Paul", "Björk", None],
        "time": [1_700_000_000, 1_700_000_400, 1_700_000_900],
        "fraction": [0.5, 1.2, 0.0],
        "session": ["s1", "s1", None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "listens.parquet")
    import_listens(engine, tmp_path)
    assert rows_of(engine, EVENTS) == EXPECTED
    assert value_of(engine, "select creator from items where item_id = 't1'") == "Simon, Paul"


def test_bad_listens_are_named_and_the_others_come_in(engine: Engine, tmp_path: Path) -> None:
    bad = b"ann,s1,t3,,1700000000,-0.1\nann,s1,t4,,2023-11-14T22:20:00,1\nann,s1,t5,,yesterday,1\n,s1,t6,,1,1\n"
    report = import_listens(engine, write(tmp_path / "listens.csv", LISTENS + bad))
    reasons = report.of("listens.csv").bad_by_reason
    assert set(reasons) == {
        "fraction outside 0–1e+06",
        "time without a zone",
        "timestamp is not a number",
        "no user id",
    }
    assert value_of(engine, "select count(*) from interactions") == 3


def test_what_is_no_table_is_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, said in (
        (tmp_path / "missing.csv", "does not exist"),
        (tmp_path / "empty", "holds 0 tables"),
        (write(tmp_path / "log.txt", LISTENS), "neither"),
        (write(tmp_path / "broken.parquet", b"PAR1 not at all"), "can't be read"),
        (write(tmp_path / "columns.csv", b"user,song\n"), "its first line should be"),
    ):
        with pytest.raises(Invalid, match=said):
            import_listens(engine, path)


SESSIONS = b"session_id,pos,item_id,is_test\n1,0,a,0\n1,1,b,0\n2,0,b,1\n2,1,c,1\n3,0,a,0\n"


def test_sessions_of_ids_become_users_of_their_own_and_end_now(engine: Engine, tmp_path: Path) -> None:
    import_sessions(engine, write(tmp_path / "sessions.csv", SESSIONS))
    found = rows_of(engine, EVENTS)
    assert [row[:5] for row in found] == [
        ("session-1", "a", "listen", None, "1"),
        ("session-1", "b", "listen", None, "1"),
        ("session-2", "b", "listen", None, "2"),
        ("session-2", "c", "listen", None, "2"),
        ("session-3", "a", "listen", None, "3"),
    ]
    times = [float(str(row[5])) for row in found]
    assert [later - earlier for earlier, later in pairwise(times)] == [1.0] * 4
    assert value_of(engine, "select max(timestamp) <= now() from interactions") is True


def test_sessions_for_a_test_can_be_left_out_and_come_later(engine: Engine, tmp_path: Path) -> None:
    path = write(tmp_path / "sessions.csv", SESSIONS)
    import_sessions(engine, path, train_only=True)
    assert value_of(engine, "select count(*) from interactions") == 3
    import_sessions(engine, path)
    assert value_of(engine, "select count(*) from interactions") == 5


@pytest.mark.skipif(not REAL.exists(), reason="the real data set is not here")
def test_the_real_nowplaying_reads_as_what_it_is_said_to_hold() -> None:
    lines = table(REAL).lines()
    assert next(lines) == b'"session_id","pos","item_id","is_test"\n'
    n, items = 0, set()
    for line in lines:
        n += 1
        items.add(line.split(b",")[2])
    assert (n, len(items)) == (1_057_684, 60_416)
