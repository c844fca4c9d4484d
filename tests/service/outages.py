"""An installation of its own, whose servers a test may take away: killed, so that nobody listens, or hung, so that
nobody answers."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL
from typing import Literal

import psutil
import psycopg2
import pytest
import redis

from app.storage.database import open_engine
from app.storage.embedded import embedded_servers, running_pids
from app.storage.embedded.postgres import installed_package
from app.storage.new_life import begin_new_life
from app.storage.release_files import point_to
from tests.conftest import leave_the_disk_alone
from tests.patience import until
from tests.service.conftest import Service, Stores, running

Server = Literal["postgres", "valkey"]
How = Literal["killed", "hung"]


@dataclass(frozen=True)
class Island:
    """Two processes over servers that no other test uses."""

    data_dir: Path
    environment: dict[str, str]
    release_id: str
    a: Service
    b: Service

    @contextmanager
    def without(self, server: Server, how: How) -> Iterator[None]:
        """Takes the server away for as long as the block lasts; it is back, and answers, when the block has ended."""
        with _killed(self.data_dir, server) if how == "killed" else _hung(self.data_dir, server):
            yield
        until(self.answers(server))

    def answers(self, server: Server) -> Callable[[], bool]:
        return self._postgres_answers if server == "postgres" else self._valkey_answers

    def _valkey_answers(self) -> bool:
        with suppress(redis.RedisError), redis.Redis.from_url(self.environment["REDIS_URL"], socket_timeout=1) as cache:
            return bool(cache.ping())
        return False

    def _postgres_answers(self) -> bool:
        with suppress(psycopg2.Error):
            psycopg2.connect(self.environment["DATABASE_URL"], connect_timeout=2).close()
            return True
        return False


@contextmanager
def _killed(data_dir: Path, server: Server) -> Iterator[None]:
    """The supervisor would start it again at once, so that one rests meanwhile."""
    pids = running_pids(data_dir)
    os.kill(pids["supervisor"], signal.SIGSTOP)
    try:
        for process in _family(pids[server]):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        yield
    finally:
        os.kill(pids["supervisor"], signal.SIGCONT)


@contextmanager
def _hung(data_dir: Path, server: Server) -> Iterator[None]:
    """Nobody answers, and what is sent is kept: done late, when the server goes on."""
    family = _family(running_pids(data_dir)[server])
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _family(pid: int) -> list[psutil.Process]:
    """The process and, after it, its children: a stopped parent makes no more."""
    parent = psutil.Process(pid)
    parent.suspend()
    return [parent, *parent.children(recursive=True)]


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Within the block this process writes no file beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own at `folder`, in memory. Skips where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a disk that can be filled needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def island(stores: Stores, data_dir: Path) -> Iterator[Island]:
    """Servers of its own below `data_dir`, which Postgres' unprivileged user can enter, with what `stores` holds, and
    two processes that serve it."""
    with embedded_servers(data_dir) as servers:
        # Two seconds of a busy disk would look like a hung Postgres. Of a process that is killed nothing is lost by it.
        leave_the_disk_alone(servers.database_url)
        _copy_database(stores.environment["DATABASE_URL"], servers.database_url)
        shutil.copytree(stores.settings.releases_dir / stores.release_id, data_dir / "releases" / stores.release_id)
        point_to(data_dir / "releases", stores.release_id)
        environment = stores.environment | {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "SEGUE_DATA_DIR": str(data_dir),
            # What a hung Postgres costs ends after this and two seconds more.
            "SEGUE_DATABASE_TIMEOUT_SECONDS": "2",
            # A busy machine shall not look like a hung Redis, nor a hung one use up the 2 s that a past is waited for.
            "SEGUE_REDIS_TIMEOUT_SECONDS": "1",
        }
        with running(environment) as a, running(environment) as b:
            yield Island(data_dir, environment, stores.release_id, a, b)


def _copy_database(source: str, target: str) -> None:
    programs = installed_package() / "pginstall" / "bin"
    dump = subprocess.run([programs / "pg_dump", "--no-owner", source], check=True, capture_output=True)
    subprocess.run(
        [programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", target], input=dump.stdout, check=True, stdout=DEVNULL
    )
    engine = open_engine(target)
    with engine.begin() as db:
        begin_new_life(db, actor="tests")
    engine.dispose()


def up(service: Service, dependency: str) -> float:
    """What `segue_dependency_up` says of it, without anybody having asked `/readyz`."""
    return metric(service, f'segue_dependency_up{{dependency="{dependency}"}}')


def metric(service: Service, name: str) -> float:
    """Its value; 0 where nothing was counted yet."""
    lines = service.client.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)
