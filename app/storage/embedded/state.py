"""What the supervisor tells the holders: a small file that counts only while its writer lives.

The writer keeps the file locked; a reader that can lock it knows that the writer is dead and that the content is old.
"""

import json
import os
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from app.storage.embedded.locks import EXCLUSIVE, SHARED, open_lock, try_lock


@dataclass(frozen=True, slots=True)
class State:
    """What the supervisor last said. The addresses are set once `status` is "ready", `error` when it is "failed"."""

    status: Literal["starting", "ready", "failed"]
    supervisor_pid: int
    database_url: str = ""
    redis_url: str = ""
    postgres_data: str = ""
    error: str = ""


def _path(folder: Path) -> Path:
    return folder / "state.json"


def read_live_state(folder: Path) -> State | None:
    """The living supervisor's state, or None where no supervisor lives."""
    try:
        descriptor = os.open(_path(folder), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(descriptor, encoding="utf-8") as file:
        return None if try_lock(descriptor, SHARED) else State(**json.loads(file.read()))


class StatePublisher:
    """Replaces the state file atomically. Only the holder of the supervisor's lock may have one."""

    def __init__(self, folder: Path) -> None:
        self._path = _path(folder)
        # The last but one stays open, and so locked: a reader may have opened it just before it was replaced.
        self._open: deque[int] = deque()

    def publish(self, state: State) -> None:
        """Writes the state and keeps it locked for as long as this process, or a child that it forks, lives."""
        written = self._path.with_suffix(".new")
        written.unlink(missing_ok=True)
        descriptor = open_lock(written)
        try_lock(descriptor, EXCLUSIVE)
        os.write(descriptor, json.dumps(asdict(state)).encode())
        written.replace(self._path)
        self._open.append(descriptor)
        if len(self._open) > 2:
            os.close(self._open.popleft())

    def withdraw(self) -> None:
        """Removes the state: from now on no supervisor lives."""
        self._path.unlink(missing_ok=True)
        while self._open:
            os.close(self._open.popleft())
