"""The processes that `segue serve` starts, those that answer and the one for jobs: each starts again when it dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from socket import socket

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app.cli.metrics_files import forget
from app.orphans import ending_with, serving_parent

log = logging.getLogger(__name__)

START_SECONDS, HANG_SECONDS = 60.0, 15.0
"""So long a worker may say nothing at all, while it starts and after that."""
GLANCE_SECONDS = 0.2
AGAIN_SECONDS = 2.0
JOBS_AGAIN_SECONDS = 5.0
"""Between two starts of what can't start now: each costs a second of CPU."""


class Worker(Process):
    """uvicorn's, with two differences. It ends with its parent, for it has the port already. And it isn't taken for
    hung as soon: where there are more processes than cores, imports take longer than uvicorn's 5 s, and if a worker
    were killed for that, so would be the next one."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self.has_started = False
        self._hung_at = time.monotonic() + START_SECONDS

    def target(self, sockets: list[socket] | None = None) -> None:
        _ = self.server  # else each of uvicorn's two threads may make its own, and the one that answers never starts
        with ending_with(serving_parent(), lambda: os.kill(os.getpid(), signal.SIGTERM)):
            super().target(sockets)

    def is_alive(self, timeout: float = GLANCE_SECONDS) -> bool:
        """Waits no longer than that for an answer, for the parent has other workers to look after, and signals. One
        that comes later, to an earlier question, is a sign of life all the same."""
        if not self.process.is_alive():
            return False
        with suppress(OSError, EOFError):
            self.parent_conn.send(b"ping")
            while self.parent_conn.poll(timeout):
                self.has_started = self.parent_conn.recv()
                self._hung_at = time.monotonic() + (HANG_SECONDS if self.has_started else START_SECONDS)
                timeout = 0
        return time.monotonic() < self._hung_at


class Workers(Multiprocess):
    """uvicorn's parent of several workers, but for one thing: uvicorn ends all of them when one can't start. Here that
    holds only until the first has served. Later it may be that Postgres is away, and the others answer well."""

    processes: list[Worker]  # type: ignore[assignment]
    _has_served = False
    _start_again_at = 0.0

    def init_processes(self) -> None:
        self.processes = [self._started() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        if not self._has_served:
            self._has_served = any(worker.is_alive() and worker.has_started for worker in self.processes)
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if not worker.is_alive():
                self._replace(index, worker)

    def _replace(self, index: int, dead: Worker) -> None:
        dead.kill()  # it may be hung
        dead.join()
        if dead.exitcode == STARTUP_FAILURE:
            if not self._has_served:
                log.error("a worker can't start; stopping")
                self.should_exit.set()
                return
            if time.monotonic() < self._start_again_at:
                return
            self._start_again_at = time.monotonic() + AGAIN_SECONDS
        log.warning("worker %s died (exit code %s): starting another", dead.pid, dead.exitcode)
        forget(dead.pid)
        self.processes[index] = self._started()

    def _started(self) -> Worker:
        worker = Worker(self.config, self.sockets)
        worker.start()
        return worker


class JobWorker:
    """`segue worker` as a child, until `end`."""

    def __init__(self) -> None:
        self._process = self._started()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._keep_alive, name="job worker's watch", daemon=True)
        self._watch.start()

    def end(self) -> None:
        """A training under way would take minutes more, so the second signal ends it; its job says that it failed."""
        self._over.set()
        self._watch.join()
        for end in (self._process.terminate, self._process.terminate, self._process.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
                return

    def _keep_alive(self) -> None:
        while not self._over.wait(JOBS_AGAIN_SECONDS):
            if (code := self._process.poll()) is not None:
                log.warning("the worker for jobs died (exit code %s): starting another", code)
                self._process = self._started()

    @staticmethod
    def _started() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "app.cli", "worker"])
