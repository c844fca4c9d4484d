"""The `segue serve` processes of a run, the workers below them, and the embedded servers that they share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from app.storage.embedded import running_pids
from tests.processes import command_line
from tests.steadfast.calls import Target

SERVERS = frozenset({"supervisor", "postgres", "valkey"})
END_PATIENCE_S = 90.0
_POLL_S = 0.05
_OURS = ("DATABASE_URL", "REDIS_URL", "PROMETHEUS_MULTIPROC_DIR")


class Service:
    """One `segue serve`, and what it is started with again after its death."""

    def __init__(self, name: str, workers: int, data_dir: Path, *, jobs: bool = False) -> None:
        """jobs: with a worker for training jobs beside it."""
        self.n_workers = workers
        port = _free_port()
        self.target = Target(name, f"http://127.0.0.1:{port}")
        self._command = [
            sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--workers", str(workers),
            "--worker" if jobs else "--no-worker",
        ]  # fmt: skip
        self._environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith("SEGUE_") and name not in _OURS
            },
            "SEGUE_DATA_DIR": str(data_dir),
            "SEGUE_LOG_LEVEL": "info",
        }
        self._log = data_dir / f"service-{name}.log"
        # Another test's service of the same name may have written there.
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        self.is_killed = False
        """It was killed on purpose; otherwise nothing excuses its death."""
        self.process = self.start()

    def start(self) -> psutil.Popen:
        with self._log.open("ab") as log:
            self.process = psutil.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.is_killed = False
        return self.process

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def workers(self) -> list[psutil.Process]:
        """The processes that answer: children of the parent, or the parent itself where there is one worker."""
        if self.n_workers == 1:
            return [self.process] if self.is_alive else []
        return self.children("spawn_main")

    def children(self, argument: str) -> list[psutil.Process]:
        """Those whose command line has this in it."""
        return [child for child in self.family()[1:] if argument in " ".join(command_line(child))]

    def family(self) -> list[psutil.Process]:
        """The parent and all that it started, but for the embedded servers, which are init's."""
        with suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return [self.process]

    @property
    def is_complete(self) -> bool:
        return self.is_alive and len(self.workers()) == self.n_workers

    def starts(self) -> int:
        """How many workers have got as far as serving, the dead ones too."""
        return self._logged().count("Application startup complete")

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self._logged().splitlines()[-lines:])

    def _logged(self) -> str:
        return self._log.read_bytes()[self._log_begins :].decode("utf-8", errors="replace")

    def end(self) -> None:
        """Politely, and then not."""
        family = self.family()
        if self.is_alive:
            self.process.terminate()
        _, left = psutil.wait_procs(family, timeout=60)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


class Services:
    """All of them, over one data folder."""

    def __init__(self, data_dir: Path, workers: Sequence[int]) -> None:
        self.data_dir = data_dir
        self.each = [Service(name, n, data_dir) for name, n in zip("ABCD", workers, strict=False)]

    @property
    def targets(self) -> list[Target]:
        return [service.target for service in self.each]

    def missing(self) -> list[str]:
        """What should run now and does not."""
        servers = SERVERS.difference(running_pids(self.data_dir))
        return sorted(servers) + [service.target.name for service in self.each if not service.is_complete]

    def end(self) -> None:
        for service in self.each:
            service.end()


def seconds_until_gone(is_gone: Callable[[], bool]) -> float:
    """How long it took, or END_PATIENCE_S."""
    began = time.monotonic()
    while not is_gone() and time.monotonic() - began < END_PATIENCE_S:
        time.sleep(_POLL_S)
    return time.monotonic() - began


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
