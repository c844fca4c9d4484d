"""A data folder for the embedded servers."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.storage.embedded import running_pids
from app.storage.embedded.folders import known_postgres_home, socket_folder

# Every test that starts from nothing writes some 60 MB, and has them synced.
MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a private folder in it
ROOMY = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder which, unlike pytest's, the unprivileged user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="segue-test-", dir=MEMORY if ROOMY else None))
    folder.chmod(0o755)
    yield folder
    for pid in running_pids(folder).values():  # a failed test's; none otherwise
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    home = known_postgres_home(folder / "embedded")
    for leftover in (folder, home, socket_folder(folder / "embedded")):
        shutil.rmtree(leftover, ignore_errors=True)
