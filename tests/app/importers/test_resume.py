"""Imports that are killed, repeated or run side by side store every rating once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from app.importers import ledger
from app.importers.bulk_load import load, loading
from app.importers.files import DataFolder
from app.importers.ledger import Source
from app.importers.movietweetings import import_movietweetings
from app.importers.report import ImportReport
from tests.app.importers.datasets import MOVIETWEETINGS, movietweetings_lines, rows_of, value_of, write_folder

LINES = 4_000
PER_CHUNK = 200

CHILD = """
import os, random, signal, sys, threading
from pathlib import Path
from app.importers.movietweetings import import_movietweetings
from app.storage.database import open_engine

chunks = 0

def progress(what, done, total):
    global chunks
    chunks += what == "ratings.dat"
    if chunks == int(sys.argv[4]):  # somewhere inside the chunk after
        threading.Timer(random.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGKILL)).start()

import_movietweetings(
    open_engine(sys.argv[1]), Path(sys.argv[2]), shift_to_now=True, lines_per_chunk=int(sys.argv[3]), progress=progress
)
"""
"""Kills itself: who has to hear of a chunk first may be too late for all that follow."""

CONSISTENT = """
    select rows_done, (select count(*) from interactions), (select count(*) from event_ids)
    from imports where source = 'movietweetings/ratings.dat'
"""


def test_an_import_killed_in_the_middle_goes_on_where_it_stopped(
    engine: Engine, postgres_url: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": movietweetings_lines(LINES)})
    command = [sys.executable, "-c", CHILD, postgres_url, str(folder), str(PER_CHUNK), "3"]

    killed = [subprocess.run(command, check=False).returncode for _ in range(2)]
    with engine.begin() as db:
        # A commit that was sent before the kill may still be on its way.
        db.execute(text("select from imports for update"))
    done, interactions, event_ids = rows_of(engine, CONSISTENT)[0]
    report = import_movietweetings(engine, folder, lines_per_chunk=PER_CHUNK).of("ratings.dat")

    assert killed == [-signal.SIGKILL, -signal.SIGKILL]
    assert isinstance(done, int)
    assert 0 < done < LINES
    assert (interactions, event_ids) == (done, done)
    assert report.lines_before == done
    assert report.counts == {"stored": LINES}
    assert rows_of(engine, CONSISTENT) == [(LINES, LINES, LINES)]
    shifts = (
        "select count(distinct extract(epoch from timestamp) - split_part(event_id, ':', 4)::int) from interactions"
    )
    assert value_of(engine, shifts) == 1
    assert value_of(engine, "select count(distinct event_id) from interactions") == LINES


def test_two_imports_of_one_file_share_the_work(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": movietweetings_lines(LINES)})
    start = threading.Barrier(2)

    def run(_: int) -> ImportReport:
        start.wait()
        return import_movietweetings(engine, folder, shift_to_now=True, lines_per_chunk=PER_CHUNK)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(run, range(2)))

    assert rows_of(engine, CONSISTENT) == [(LINES, LINES, LINES)]
    assert max(report.of("ratings.dat").counts["stored"] for report in reports) == LINES
    assert value_of(engine, "select max(row) + 1 - count(*) from users") == 0
    assert value_of(engine, "select count(distinct shift_seconds) from imports where shift_seconds is not null") == 1


class _Stopped(Exception):
    """An import that ends early, as its progress decides."""


def test_an_import_goes_on_behind_what_another_one_did_meanwhile(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": movietweetings_lines(1_000)})
    told: list[int] = []

    def stop_at_450(what: str, done: int, total: int) -> None:
        if (what, done) == ("ratings.dat", 450):
            raise _Stopped

    def another_begins(what: str, done: int, total: int) -> None:
        told.append(done)
        if (what, done) == ("ratings.dat", 200):
            with pytest.raises(_Stopped):
                import_movietweetings(engine, folder, lines_per_chunk=250, progress=stop_at_450)
        if (what, done) == ("ratings.dat", 600):
            import_movietweetings(engine, folder, lines_per_chunk=100)

    report = import_movietweetings(engine, folder, lines_per_chunk=200, progress=another_begins)

    # 2 movies; then 200, and the other one up to 450: 400 is behind already.
    assert told == [2, 200, 450, 600, 1_000, 1_000]
    assert report.of("ratings.dat").counts == {"stored": 1_000}
    assert rows_of(engine, CONSISTENT) == [(1_000, 1_000, 1_000)]


def test_times_are_not_shifted_once_some_rows_are_in(engine: Engine) -> None:
    source = Source("test/ratings.dat", "f00d")
    ledger.open_entry(engine, source)
    with engine.begin() as db:
        before = ledger.lock_entry(db, source)
        ledger.advance(db, source, before, lines_done=5, counts=Counter(stored=5), bad_by_reason=Counter())

    assert ledger.decide_shift(engine, source, 60.0).shift_seconds is None


def test_files_that_overlap_run_side_by_side(engine: Engine, tmp_path: Path) -> None:
    lines = movietweetings_lines(LINES).splitlines(keepends=True)
    forwards = write_folder(tmp_path / "a", MOVIETWEETINGS | {"ratings.dat": b"".join(lines)})
    backwards = write_folder(tmp_path / "b", MOVIETWEETINGS | {"ratings.dat": b"".join(reversed(lines))})

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(import_movietweetings, engine, folder, lines_per_chunk=PER_CHUNK)
            for folder in (forwards, backwards)
        ]
        counts = sum((job.result().of("ratings.dat").counts for job in jobs), Counter[str]())

    assert counts == {"stored": LINES, "duplicates": LINES}
    assert value_of(engine, "select count(*) from interactions") == LINES


def test_a_chunk_that_fails_leaves_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": movietweetings_lines(LINES)})
    with engine.begin() as db:
        db.execute(text("alter table interactions add constraint spoiled check (event_id not like '%1365000250')"))
    try:
        with pytest.raises(Exception, match="spoiled"):
            import_movietweetings(engine, folder, lines_per_chunk=PER_CHUNK)
        assert rows_of(engine, CONSISTENT) == [(200, 200, 200)]
    finally:
        with engine.begin() as db:
            db.execute(text("alter table interactions drop constraint spoiled"))

    assert import_movietweetings(engine, folder).of("ratings.dat").counts == {"stored": LINES}


def test_a_deadlock_costs_another_try_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    file = DataFolder(write_folder(tmp_path, {"names.txt": b"a\nb\nc\n"})).require("names.txt", "test")
    attempts: list[list[str]] = []

    def store(db: Connection, rows: Sequence[str]) -> Counter[str]:
        attempts.append(list(rows))
        if len(attempts) < 3:
            raise OperationalError("insert", {}, errors.DeadlockDetected())
        return Counter(stored=len(rows))

    report = load(engine, loading("test", file, str, store), lambda *_: None)

    assert attempts == [["a", "b", "c"]] * 3
    assert report.counts == {"stored": 3}


def test_progress_counts_lines_up_to_all_of_them(engine: Engine, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, MOVIETWEETINGS | {"ratings.dat": movietweetings_lines(500)})
    calls: list[Any] = []

    import_movietweetings(engine, folder, lines_per_chunk=200, progress=lambda *call: calls.append(call))

    assert calls == [
        ("movies.dat", 2, 2), ("ratings.dat", 200, 500), ("ratings.dat", 400, 500), ("ratings.dat", 500, 500),
    ]  # fmt: skip
