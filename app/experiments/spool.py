"""What a process has noted and not stored yet, on disk, so that it outlives a process that is killed.

A killed process loses its memory, not what it has written to a file: that is the kernel's by then. Each process has two
files of its own, taken in turn: lines go to one while the other is being stored. It holds a lock on both for as long as
it lives; a file that can be locked was left behind, and whoever finds it takes it over. Nothing is synced: with the
power goes what the kernel had not written yet.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

log = logging.getLogger(__name__)


class SpoolFile:
    """Lines, appended whole or not at all, in a file that is locked until it is closed."""

    def __init__(self, path: Path, *, create: bool) -> None:
        """Raises OSError: BlockingIOError where another process has it, FileNotFoundError where it is gone."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_nlink == 0:
                raise FileNotFoundError(f"{path}: taken over and deleted meanwhile")
        except OSError:
            os.close(self._file)
            raise
        self._size = os.fstat(self._file).st_size

    @property
    def is_empty(self) -> bool:
        return self._size == 0

    def append(self, line: bytes) -> None:
        """line: without its end. Raises OSError, and leaves nothing of it then."""
        whole = line + b"\n"
        written = 0
        try:
            written = os.write(self._file, whole)
            if written < len(whole):
                raise OSError(f"{self.path}: {written} of {len(whole)} bytes were written")
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += written

    def lines(self) -> list[bytes]:
        """Every whole line. What a full disk or a crash left without an end is none."""
        return os.pread(self._file, self._size, 0).split(b"\n")[:-1]

    def clear(self) -> None:
        os.ftruncate(self._file, 0)
        self._size = 0

    def close(self, *, delete: bool) -> None:
        if delete:
            with suppress(FileNotFoundError):
                self.path.unlink()
        os.close(self._file)


class Spool:
    """This process's two files. Not thread-safe. Where they can't be written it says so once and keeps nothing."""

    def __init__(self, folder: Path, name: str) -> None:
        """name: what the files of all processes that may take over from each other begin with."""
        self._files: list[SpoolFile] = []
        self.is_failing = False
        """Whether the last line could not be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                self._files.append(_new(folder, name))
        except OSError as error:
            self._failed(error)

    def append(self, line: bytes) -> bool:
        """Whether it is in the file of the moment."""
        if len(self._files) < 2:
            return False
        try:
            self._files[0].append(line)
        except OSError as error:
            self._failed(error)
            return False
        self.is_failing = False
        return True

    def turn(self) -> SpoolFile | None:
        """The file that lines went to, the caller's until it clears it; from now on they go to the other one."""
        if len(self._files) < 2:
            return None
        self._files.reverse()
        return self._files[1]

    def close(self) -> None:
        """Leaves behind what is in the files."""
        for file in self._files:
            file.close(delete=file.is_empty)
        self._files.clear()

    def _failed(self, error: OSError) -> None:
        if not self.is_failing:
            log.warning("what is noted of experiments would not outlive this process: %s", error)
        self.is_failing = True


def left_behind(folder: Path, name: str) -> Iterator[SpoolFile]:
    """Files of processes that are gone, locked for the caller, who closes them."""
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        try:
            file = SpoolFile(path, create=False)
        except OSError:
            continue
        yield file


def _new(folder: Path, name: str) -> SpoolFile:
    """Another process may take a file for left behind in the moment before it is locked: then another one."""
    while True:
        with suppress(BlockingIOError, FileNotFoundError):
            return SpoolFile(folder / f"{name}-{os.getpid()}-{uuid4().hex[:12]}.jsonl", create=True)
