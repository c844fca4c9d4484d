"""Where the workers of one service count, so that whichever is asked for /metrics answers for all of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import multiprocess

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX = "segue-metrics-"


@contextmanager
def metrics_folder() -> Iterator[None]:
    """For this process's children, within the block; a folder that is configured already stays as it is."""
    if _VARIABLE in os.environ:
        yield
        return
    _remove_what_killed_services_left()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        os.environ[_VARIABLE] = folder
        yield


def forget(pid: int | None) -> None:
    """A worker that is dead has no queue and sees no dependency any more; what it counted remains."""
    if pid is not None:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _remove_what_killed_services_left() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)  # another user's stays


def _lives(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
