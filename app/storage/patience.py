"""An end to waiting for a Postgres that hangs.

`statement_timeout` is kept by the server, and TCP's own timeouts by its kernel: a process that is stopped, or a machine
that swaps, keeps neither, and psycopg2 waits in the kernel for ever. Here a thread looks at what each connection of an
engine waits for, and cuts off those that wait for too long; who waited gets OperationalError.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import psycopg2
from psycopg2 import extensions
from sqlalchemy import Connection, Engine, event

from app.repeating import repeating

LOOK_SECONDS = 0.5


class WatchedConnection(extensions.connection):  # type: ignore[misc]  # psycopg2 has no types
    """Notes since when it waits for the server. May be turned to `is_patient`, for what takes as long as it takes."""

    waits_since: float | None = None
    """Monotonic seconds."""
    is_patient = False

    def commit(self) -> None:
        self.waits_since = time.monotonic()
        try:
            super().commit()
        finally:
            self.waits_since = None

    def rollback(self) -> None:
        self.waits_since = time.monotonic()
        try:
            super().rollback()
        finally:
            self.waits_since = None


class WatchedCursor(extensions.cursor):  # type: ignore[misc]  # psycopg2 has no types
    """Notes on its connection since when it waits."""

    def execute(self, *arguments: Any) -> None:
        self.connection.waits_since = time.monotonic()
        try:
            super().execute(*arguments)
        finally:
            self.connection.waits_since = None

    def executemany(self, *arguments: Any) -> None:
        self.connection.waits_since = time.monotonic()
        try:
            super().executemany(*arguments)
        finally:
            self.connection.waits_since = None

    def copy_expert(self, *arguments: Any) -> None:
        self.connection.waits_since = time.monotonic()
        try:
            super().copy_expert(*arguments)
        finally:
            self.connection.waits_since = None


@contextmanager
def patient_for(engine: Engine, seconds: float) -> Iterator[None]:
    """Within the block no connection that the engine makes waits longer than this for one answer.

    seconds: more than the engine's statement_timeout, which leaves the connection whole
    """
    watched: WeakSet[WatchedConnection] = WeakSet()
    adding = threading.Lock()

    def prepare(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
        parameters.update(connection_factory=WatchedConnection, cursor_factory=WatchedCursor)

    def add(connection: WatchedConnection, _record: object) -> None:
        with adding:
            watched.add(connection)

    def look() -> None:
        with adding:
            connections = list(watched)
        for connection in connections:
            _cut_off_if_silent(connection, seconds)

    event.listen(engine, "do_connect", prepare)
    event.listen(engine, "connect", add)
    with repeating("patience", LOOK_SECONDS, look):
        yield


def be_patient(db: Connection) -> None:
    """Lets this connection wait for as long as the server lets it: for what reads or counts everything."""
    connection = db.connection.dbapi_connection
    if isinstance(connection, WatchedConnection):
        connection.is_patient = True


def cut_off(db: Connection) -> None:
    """Ends the waiting of another thread on this connection, which is of no use any more."""
    connection = db.connection.dbapi_connection
    if isinstance(connection, WatchedConnection):
        _cut_off(connection)


def _cut_off_if_silent(connection: WatchedConnection, seconds: float) -> None:
    since = connection.waits_since
    if since is not None and not connection.is_patient and time.monotonic() - since >= seconds:
        _cut_off(connection)


def _cut_off(connection: WatchedConnection) -> None:
    # Not `close`, which waits for the lock that the waiting thread holds. That thread hears that the server has gone.
    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as its_socket:
        its_socket.shutdown(socket.SHUT_RDWR)
