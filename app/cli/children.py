"""The processes that `segue serve` starts, those that answer and the one for jobs: each starts again when it dies."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from contextlib import suppress

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

log = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0
JOBS_AGAIN_SECONDS = 5.0
"""Between two starts of what can't start now: each costs a second of CPU."""


class Workers(Multiprocess):
    """uvicorn's parent of several workers, but for one thing: uvicorn ends all of them when one can't start. Here that
    holds only until the first has served. Later it may be that Postgres is away, and the others answer well."""

    _has_served = False
    _start_again_at = 0.0

    def keep_subprocess_alive(self) -> None:
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if not worker.is_alive(self.config.timeout_worker_healthcheck):
                self._replace(index, worker)
        self._notice_who_serves()

    def _notice_who_serves(self) -> None:
        if not self._has_served:
            self._has_served = any(worker.process.is_alive() and worker.is_ready() for worker in self.processes)

    def _replace(self, index: int, dead: Process) -> None:
        dead.kill()  # it may be hung
        dead.join()
        if dead.exitcode == STARTUP_FAILURE:
            self._notice_who_serves()
            if not self._has_served:
                log.error("a worker can't start; stopping")
                self.should_exit.set()
                return
            if time.monotonic() < self._start_again_at:
                return
            self._start_again_at = time.monotonic() + AGAIN_SECONDS
        log.warning("worker %s died (exit code %s): starting another", dead.pid, dead.exitcode)
        self.processes[index] = Process(self.config, self.sockets)
        self.processes[index].start()


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
