"""The holders' side: hold the data folder, see to it that a supervisor lives, and learn where the servers are."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.repeating import repeating
from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.folders import embedded_folder, known_postgres_home
from app.storage.embedded.locks import EXCLUSIVE, SHARED, open_lock, try_lock, wait_for_lock
from app.storage.embedded.postgres import postmaster_pid
from app.storage.embedded.processes import log_tail
from app.storage.embedded.state import State, read_live_state
from app.storage.embedded.valkey import valkey_pid

log = logging.getLogger("app.storage.embedded")

_READY_WITHIN_S = 120.0
_STOPPED_WITHIN_S = 60.0
_POLL_S = 0.02
_WATCH_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class EmbeddedServers:
    """Where the servers of a data folder are; the addresses stay the same while anyone holds it."""

    database_url: str
    redis_url: str


@contextmanager
def embedded_servers(data_dir: Path) -> Iterator[EmbeddedServers]:
    """Runs Postgres and Valkey on a data folder, for as long as any process is inside this context.

    The first one in starts them (about a second), the last one out waits until they are stopped. A process that dies
    inside, by whatever signal, counts as out within a second, and its forked children as in; so a holder needs no
    handler for SIGTERM, though with one that leaves the context it ends only after the servers do. A server that dies
    is restarted within seconds: clients reconnect to the same address.

    Raises:
        EmbeddedServersError: not installed, data of another version, or not ready within two minutes.
    """
    folder = embedded_folder(data_dir)
    with _holding(folder):
        state = _ready_state(folder)
        _mention_data_elsewhere(folder, state)
        with repeating("embedded servers' watch", _WATCH_EVERY_S, partial(_look_after, folder)):
            yield EmbeddedServers(state.database_url, state.redis_url)


def running_pids(data_dir: Path) -> dict[str, int]:
    """The living processes of a data folder, by the names "supervisor", "postgres" and "valkey"."""
    folder = data_dir.resolve() / "embedded"
    state = read_live_state(folder)
    found = {
        "supervisor": None if state is None else state.supervisor_pid,
        "postgres": postmaster_pid(known_postgres_home(folder) / "postgres"),
        "valkey": valkey_pid(folder / "valkey"),
    }
    return {name: pid for name, pid in found.items() if pid is not None}


@contextmanager
def _holding(folder: Path) -> Iterator[None]:
    try:
        lock = open_lock(folder / "holders.lock")
    except OSError as error:
        raise EmbeddedServersError(f"{folder} can't be used, perhaps it is another user's: {error}") from error
    try:
        # Refused only while a supervisor stops the servers.
        if not wait_for_lock(lock, SHARED, _STOPPED_WITHIN_S):
            raise EmbeddedServersError(
                f"The servers of {folder} are being stopped, and don't end. {_supervisor_log(folder)}"
            )
        yield
    finally:
        os.close(lock)
        _wait_until_stopped_if_last(folder)


def _ready_state(folder: Path) -> State:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        state = read_live_state(folder)
        if state is None:
            _start_supervisor(folder)
        elif state.status == "ready":
            return state
        elif state.status == "failed":
            raise EmbeddedServersError(state.error)
        time.sleep(_POLL_S)
    raise EmbeddedServersError(
        f"The servers of {folder} are not ready after {_READY_WITHIN_S:.0f} s. {_supervisor_log(folder)}"
    )


def _start_supervisor(folder: Path) -> None:
    """Returns when a supervisor, this one or another holder's, has published its state, or has died again.

    Raises:
        EmbeddedServersError: Python could not run it.
    """
    with (folder / "supervisor.log").open("ab") as output:
        started = subprocess.run(
            [sys.executable, "-P", "-m", "app.storage.embedded", str(folder.parent)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment_with_app(),
            start_new_session=True,  # Ctrl-C in the holder's terminal is not for the servers
        )
    if started.returncode != 0:
        raise EmbeddedServersError(f"The servers' supervisor could not be started. {_supervisor_log(folder)}")


def _environment_with_app() -> dict[str, str]:
    """Ours, with the folder of the package `app`, which may have been found through our working directory."""
    root = str(Path(__file__).parents[3])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def _mention_data_elsewhere(folder: Path, state: State) -> None:
    if state.postgres_data != str(folder):
        log.warning("Postgres can't enter %s as an unprivileged user: its data is in %s", folder, state.postgres_data)


def _look_after(folder: Path) -> None:
    """Starts another supervisor when ours was killed."""
    try:
        state = read_live_state(folder)
        if state is None:
            log.warning("The supervisor of %s is gone: starting another", folder)
            _start_supervisor(folder)
        elif state.status == "failed":
            log.error("A server of %s died and can't be started again: %s", folder, state.error)
    except (EmbeddedServersError, OSError) as error:  # a full disk, say, which may pass
        log.warning("The servers of %s are not supervised: %s", folder, error)


def _wait_until_stopped_if_last(folder: Path) -> None:
    deadline = time.monotonic() + _STOPPED_WITHIN_S
    while read_live_state(folder) is not None and not _is_held(folder):
        if time.monotonic() > deadline:
            log.warning("The servers of %s don't end. %s", folder, _supervisor_log(folder))
            return
        time.sleep(_POLL_S)


def _is_held(folder: Path) -> bool:
    """Whether another holder is in. A supervisor that stops the servers has the lock too, but for itself alone."""
    lock = open_lock(folder / "holders.lock")
    try:
        return try_lock(lock, SHARED) and not try_lock(lock, EXCLUSIVE)
    finally:
        os.close(lock)


def _supervisor_log(folder: Path) -> str:
    return log_tail(folder / "supervisor.log")
