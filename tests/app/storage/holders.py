"""Other processes inside `embedded_servers`, and what the tests ask of the servers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
import redis

from app.storage.embedded import EmbeddedServers, running_pids

PROJECT = Path(__file__).parents[3]
SERVERS = {"supervisor", "postgres", "valkey"}
PATIENCE_S = 90.0


HOLDER = """
import json, sys
from pathlib import Path
from app.storage.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1])) as servers:
    print(json.dumps([servers.database_url, servers.redis_url]), flush=True)
    sys.stdin.read()
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")


@dataclass
class Holder:
    """Another process inside `embedded_servers`."""

    process: subprocess.Popen[str]

    def servers(self) -> EmbeddedServers:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the holder ended before the servers were ready"
        return EmbeddedServers(*json.loads(line))

    def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)


@contextmanager
def another_holder(data_dir: Path, python: str = sys.executable, **options: Any) -> Iterator[Holder]:
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{Path(psycopg2.__file__).parents[1]}"}
    with subprocess.Popen(
        [python, "-c", HOLDER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    ) as process:
        try:
            yield Holder(process)
        finally:
            holder = Holder(process)
            holder.leave()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                holder.kill()


def query(servers: EmbeddedServers, statement: str) -> Any:
    with closing(psycopg2.connect(servers.database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


def cache(servers: EmbeddedServers) -> redis.Redis:
    return redis.Redis.from_url(servers.redis_url, decode_responses=True)


def remember(servers: EmbeddedServers) -> None:
    query(servers, "CREATE TABLE memory AS SELECT 42 AS answer")
    with cache(servers) as client:
        client.set("answer", "42")


def remembers(servers: EmbeddedServers) -> bool:
    with cache(servers) as client:
        return bool((query(servers, "SELECT answer FROM memory"), client.get("answer")) == ((42,), "42"))


def both_answer(servers: EmbeddedServers) -> bool:
    try:
        return remembers(servers)
    except (psycopg2.OperationalError, redis.ConnectionError):
        return False


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def nothing_runs(data_dir: Path, pids: dict[str, int]) -> bool:
    return not running_pids(data_dir) and all(map(is_gone, pids.values()))


def unprivileged_python() -> str:
    """An interpreter of our version that the unprivileged user may run: ours can lie in a closed folder."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            if subprocess.run([python, "-c", ""], user="nobody", cwd="/", check=False).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip(f"the user nobody can run no {name}")
