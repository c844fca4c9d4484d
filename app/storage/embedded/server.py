"""One server under supervision: what Postgres and Valkey have in common, and how either is kept alive."""

import logging
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.locks import EXCLUSIVE, open_lock, try_lock
from app.storage.embedded.processes import Account, StopStep, log_tail, spawn, stop

log = logging.getLogger("app.storage.embedded")

# Generous: recovery after a crash replays up to a gigabyte of log.
_READY_WITHIN_S = 60.0
_POLL_S = 0.02


class Server(Protocol):
    """What differs between Postgres and Valkey."""

    name: str
    account: Account | None
    socket: Path
    log: Path
    lock: Path

    @property
    def stop_steps(self) -> Sequence[StopStep]:
        """The signals that stop it, the clean one first."""

    def prepare(self, lock: int) -> None:
        """Makes the data folder ready to be served; `lock` is for programs that it starts."""

    def command(self) -> list[str | Path]:
        """The command line."""

    def running_pid(self) -> int | None:
        """The process that serves our data folder, whoever started it."""

    def accepts_connections(self) -> bool:
        """Whether a client is served now."""


class SupervisedServer:
    """A server as a child of this process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._process: subprocess.Popen[bytes] | None = None

    def is_healthy(self) -> bool:
        """Whether the process lives and can be reached: a temp dir's cleaner may have taken its socket."""
        return not self._is_gone() and self.server.socket.exists()

    def start(self) -> None:
        """Starts the server, after stopping what is left of an earlier one on the same data.

        Raises:
            EmbeddedServersError: the data can't be served, or an earlier server won't stop.
        """
        self.stop()
        server = self.server
        with _exclusively(server) as lock:
            server.prepare(lock)
            self._process = spawn(
                server.command(),
                account=server.account,
                log=server.log,
                lock=lock,
                signal_on_orphaning=server.stop_steps[0].signal,
            )
        log.info("%s started, process %d", server.name, self._process.pid)

    def wait_until_ready(self) -> None:
        """Returns once clients are served.

        Raises:
            EmbeddedServersError: the server ended, or served nobody within a minute; it is stopped then.
        """
        deadline = time.monotonic() + _READY_WITHIN_S
        while not self.server.accepts_connections():
            if self._is_gone():
                raise EmbeddedServersError(f"{self.server.name} ended while starting. {log_tail(self.server.log)}")
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedServersError(
                    f"{self.server.name} accepts no connections after {_READY_WITHIN_S:.0f} s. "
                    f"{log_tail(self.server.log)}"
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stops the server if it runs, cleanly if it lets itself be stopped so."""
        if not stop(self._pid, self._is_gone, self.server.stop_steps):
            log.error("%s can't be stopped", self.server.name)

    def _pid(self) -> int | None:
        return None if self._process is None or self._is_gone() else self._process.pid

    def _is_gone(self) -> bool:
        # `poll` also takes leave of the dead child, so that it doesn't stay as a zombie.
        return self._process is None or self._process.poll() is not None


@contextmanager
def _exclusively(server: Server) -> Iterator[int]:
    """Holds the lock that every process of the server inherits: while we have it, none of an earlier one is left."""
    lock = open_lock(server.lock)
    try:
        if not stop(server.running_pid, lambda: try_lock(lock, EXCLUSIVE), server.stop_steps):
            raise EmbeddedServersError(
                f"Processes of an earlier {server.name} still use {server.lock} and don't stop: stop them by hand"
            )
        yield lock
    finally:
        os.close(lock)
