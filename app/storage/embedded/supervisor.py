"""The servers' parent: keeps both running while anyone holds the data folder, then stops them and ends.

Locks, in the order in which they are taken:

    supervisor.lock   exclusively, for the supervisor's life: there is one per data folder
    holders.lock      shared by the holders; the supervisor tries for it exclusively. It gets it when nobody is
                      left, and keeps it until the servers are stopped, so that who comes then waits, and starts anew
    postgres.lock     exclusively, inherited by all of the server's processes: what a killed supervisor left behind
    valkey.lock       is stopped before another server is started on the same data
"""

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.folders import remove_socket_folder, socket_folder
from app.storage.embedded.locks import EXCLUSIVE, open_lock, try_lock
from app.storage.embedded.postgres import Postgres
from app.storage.embedded.server import SupervisedServer
from app.storage.embedded.state import State, StatePublisher
from app.storage.embedded.valkey import Valkey

log = logging.getLogger("app.storage.embedded")

_POLL_S = 0.25
_RETRY_AFTER_S = 2.0


class Supervisor:
    """Supervises the servers of one data folder. The caller holds the supervisor's lock."""

    def __init__(self, folder: Path, publisher: StatePublisher) -> None:
        self._folder = folder
        self._publisher = publisher
        self._holders = open_lock(folder / "holders.lock")
        self._sockets: Path | None = None
        self._servers: Sequence[SupervisedServer] = ()
        self._when_ready = State("ready", os.getpid())
        self._retry_at = 0.0

    def run(self) -> None:
        """Returns when nobody holds the data folder, or it is gone, and the servers are stopped."""
        try:
            while not self._is_over():
                self._keep_servers_running()
                time.sleep(_POLL_S)
        finally:
            self._end()

    def _is_over(self) -> bool:
        try:
            present = os.stat(self._folder / "holders.lock")
        except FileNotFoundError:
            return True
        return not os.path.samestat(present, os.fstat(self._holders)) or try_lock(self._holders, EXCLUSIVE)

    def _keep_servers_running(self) -> None:
        if self._servers and all(server.is_healthy() for server in self._servers):
            return
        if time.monotonic() < self._retry_at:
            return
        try:
            self._start_servers()
        except (EmbeddedServersError, OSError) as error:
            log.exception("The servers could not be started")
            self._publisher.publish(State("failed", os.getpid(), error=str(error)))
            self._retry_at = time.monotonic() + _RETRY_AFTER_S

    def _start_servers(self) -> None:
        self._publisher.publish(State("starting", os.getpid()))
        self._find_servers()
        for server in self._servers:
            if not server.is_healthy():
                server.start()
        for server in self._servers:
            server.wait_until_ready()
        self._publisher.publish(self._when_ready)

    def _find_servers(self) -> None:
        self._sockets = socket_folder(self._folder)  # every time: it lies in a temp dir, which others may clean
        if not self._servers:
            postgres, valkey = Postgres(self._folder, self._sockets), Valkey(self._folder, self._sockets)
            self._servers = [SupervisedServer(valkey), SupervisedServer(postgres)]  # the quicker one first
            self._when_ready = State("ready", os.getpid(), postgres.url, valkey.url, str(postgres.home))

    def _end(self) -> None:
        for server in self._servers:
            server.stop()
        if self._sockets is not None:
            remove_socket_folder(self._sockets)
        self._publisher.withdraw()


def exit_on_signals() -> None:
    """Lets a polite end of this process, such as the system's shutdown, stop the servers too."""

    def leave(number: int, _frame: object) -> NoReturn:
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # stopping the servers is not interrupted
        raise SystemExit(128 + number)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, leave)
