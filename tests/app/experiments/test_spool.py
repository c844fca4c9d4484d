"""What a process has noted outlives it; half a line is none, and a living process keeps its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.experiments import spool
from app.experiments.spool import Spool, SpoolFile, left_behind

NOTES_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from app.experiments.spool import Spool
spool = Spool(Path(sys.argv[1]), "db")
spool.append(b"one"), spool.append(b"two")
os.kill(os.getpid(), signal.SIGKILL)
"""


def taken_over(folder: Path, *, delete: bool = True) -> list[bytes]:
    found = []
    for file in left_behind(folder, "db"):
        found += file.lines()
        file.close(delete=delete)
    return found


def test_what_a_killed_process_noted_is_found_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", NOTES_AND_IS_KILLED, str(tmp_path)], check=False)
    assert taken_over(tmp_path, delete=False) == [b"one", b"two"]
    assert taken_over(tmp_path) == [b"one", b"two"]
    assert taken_over(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_keeps_its_files_and_others_do_not_touch_other_databases(tmp_path: Path) -> None:
    mine = Spool(tmp_path, "db")
    mine.append(b"one")
    assert taken_over(tmp_path) == []
    mine.close()
    assert list(left_behind(tmp_path, "another-db")) == []
    assert taken_over(tmp_path) == [b"one"]


def test_lines_go_to_one_file_while_the_other_is_being_stored(tmp_path: Path) -> None:
    mine = Spool(tmp_path, "db")
    mine.append(b"one")
    first = mine.turn()
    mine.append(b"two")
    assert first is not None
    assert first.lines() == [b"one"]
    first.clear()
    second = mine.turn()
    assert second is not None
    assert second.lines() == [b"two"]
    mine.close()
    assert taken_over(tmp_path) == [b"two"]


def test_half_a_line_is_none(tmp_path: Path) -> None:
    (tmp_path / "db-1-1.jsonl").write_bytes(b"one\ntw")
    assert taken_over(tmp_path) == [b"one"]


def test_a_line_that_does_not_fit_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SpoolFile(tmp_path / "db-1-1.jsonl", create=True)
    file.append(b"one")
    real = os.write

    def write_half(target: int, data: bytes) -> int:
        return real(target, data[: len(data) // 2])

    with monkeypatch.context() as full_disk:
        full_disk.setattr(spool.os, "write", write_half)
        with pytest.raises(OSError, match="bytes were written"):
            file.append(b"two")
    file.append(b"three")
    assert file.lines() == [b"one", b"three"]
    file.close(delete=False)


def test_where_nothing_can_be_written_it_says_so_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    mine = Spool(tmp_path / "file", "db")
    assert not mine.append(b"one")
    assert mine.turn() is None
    assert mine.is_failing
    assert "outlive" in caplog.text
    mine.close()
