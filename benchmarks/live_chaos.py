"""Whether the live signals survive kill -9: after each one, checkpoint and log together equal a recount.

    python -m benchmarks.live_chaos [--kills 50] [--seed 0]

Two services on embedded servers in a temporary folder, under concurrent writes: new, late and repeated events, likes
taken back, users erased and made again. At random moments it kills the process that stores checkpoints, any of the
services, Valkey or Postgres. The comparison is made in one snapshot, while the writers go on; at the end what both
services answer is compared too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg2
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from app.live.check import check
from app.live.follower import PROJECTOR_LOCK
from app.live.log import recount
from app.settings import Settings
from app.storage.database import migrate, open_engine
from app.storage.embedded import embedded_servers, running_pids

USERS, ITEMS = 250, 12
"""More users than an item's list of visitors holds, so that erasures have to fill lists up again."""
SERVICES, WRITERS = 2, 3
VICTIMS = ("postgres", "projector", "service", "valkey")
LONGEST_WAIT_S = 1.0
WRITES_BETWEEN_KILLS = 30
PATIENCE_S = 90.0
KINDS = ("view", "click", "like", "purchase", "rating", "dislike", "skip", "listen")

_PROJECTOR = """
    SELECT split_part(application_name, ' ', 3)::int FROM pg_stat_activity JOIN pg_locks USING (pid)
    WHERE locktype = 'advisory' AND objid = :lock AND granted
"""


@dataclass
class Report:
    """What was killed, how often the two agreed, and how much was written meanwhile."""

    killed: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)
    events: int = 0

    def __str__(self) -> str:
        killed = ", ".join(f"{name} {count}" for name, count in sorted(self.killed.items()))
        written = ", ".join(f"{count} {name}" for name, count in sorted(self.written.items()))
        return (
            f"{self.killed.total()} kills: {killed}\nanswered: {written}; {self.events} interactions at the end\n"
            f"{len(self.differences)} differences to a recount" + "".join(f"\n  {line}" for line in self.differences)
        )


class Services:
    """`segue serve`, several times over the same servers; one that died is started again."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = {**os.environ, **environment}
        self._log = log
        self.urls: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        for _ in range(SERVICES):
            self.urls.append(f"http://127.0.0.1:{_free_port()}")
            self.processes.append(self._started(self.urls[-1]))

    def kill(self, pid: int) -> None:
        """Also waits until it is dead, where it is one of these: else it might not be missed by `revive`."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            if process.pid == pid:
                process.wait()

    def revive(self) -> None:
        for index, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[index] = self._started(self.urls[index])

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _started(self, url: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "app.cli", "serve", "--no-worker", "--port", url.rpartition(":")[2]]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def mishaps(self) -> list[str]:
        """What the log says that only a mistake in the code explains."""
        lines = self._log.read_text("utf-8", errors="replace").splitlines()
        return [line for line in lines if "live signals are loaded again" in line]


class Writers:
    """Threads that write at random until told to stop; what fails they leave, and go on."""

    def __init__(self, urls: list[str], seed: int, written: Counter[str]) -> None:
        self._urls, self._written = urls, written
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(seed + n,), daemon=True) for n in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(timeout=5) as client:
            while not self._stop.is_set():
                what, request = _request(chance)
                try:
                    answer = client.request(url=chance.choice(self._urls) + request.pop("path"), **request)
                except httpx.HTTPError:
                    self._stop.wait(0.05)
                    continue
                if answer.is_success:
                    self._written[what] += 1
                elif answer.status_code < 500:
                    self._written[f"{what} refused"] += 1


def _request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    user, item = f"u{chance.randrange(USERS)}", f"i{int(chance.random() ** 2 * ITEMS)}"
    dice = chance.random()
    if dice < 0.03:
        return "erasures", {"method": "DELETE", "path": f"/users/{user}"}
    if dice < 0.08:
        return "users made", {"method": "PUT", "path": f"/users/{user}", "json": {}}
    if dice < 0.12:
        return "likes", {"method": "PUT", "path": f"/users/{user}/likes/{item}"}
    if dice < 0.15:
        return "likes taken back", {"method": "DELETE", "path": f"/users/{user}/likes/{item}"}
    return "batches of events", {
        "method": "POST", "path": "/events", "json": [_event(chance) for _ in range(chance.randrange(1, 30))],
    }  # fmt: skip


def _event(chance: random.Random) -> dict[str, Any]:
    kind = chance.choice(KINDS)
    # Now, earlier today, or up to two months late.
    age = chance.choice((0.0, chance.random() * 0.5, chance.random() * 60))
    return {
        "user_id": f"u{chance.randrange(USERS)}",
        "item_id": f"i{int(chance.random() ** 2 * ITEMS)}",
        "kind": kind,
        "value": {"rating": chance.randrange(6), "listen": chance.random()}.get(kind),
        "timestamp": (datetime.now(UTC) - timedelta(days=age)).isoformat(),
    }


def chaos(data_dir: Path, kills: int, seed: int, say: Callable[[str], None] = lambda _: None) -> Report:
    """Kills so many times and compares after each."""
    report, chance = Report(), random.Random(seed)
    with embedded_servers(data_dir) as servers, ExitStack() as stack:
        environment = {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "SEGUE_DATA_DIR": str(data_dir / "var"),
            "SEGUE_LIVE_CHECKPOINT_SECONDS": "0.3",
            "SEGUE_LOG_LEVEL": "error",
        }
        migrate(servers.database_url)
        engine = open_engine(servers.database_url, statement_timeout_seconds=60)
        stack.callback(engine.dispose)
        services = Services(environment, data_dir / "services.log")
        stack.callback(services.end)
        _await(lambda: _projector(engine) is not None, "nobody stores checkpoints")
        writers = Writers(services.urls, seed, report.written)
        stack.callback(writers.end)
        for number, victim in zip(range(kills), _victims(chance), strict=False):
            before = report.written.total()
            _await(lambda: report.written.total() - before >= WRITES_BETWEEN_KILLS, "nothing is written")  # noqa: B023
            time.sleep(chance.random() * LONGEST_WAIT_S)
            _kill(victim, chance, engine, services, data_dir)
            report.killed[victim] += 1
            found = _compared(engine)
            report.differences += [f"after kill {number + 1} ({victim}): {line}" for line in found]
            say(f"{number + 1}: {victim}, {len(found)} differences")
            services.revive()
        writers.end()
        for url in services.urls:
            report.differences += _answered(url, engine)
        report.differences += services.mishaps()
        with engine.connect() as db:
            report.events = db.execute(text("select count(*) from interactions")).scalar_one()
    return report


def _victims(chance: random.Random) -> Iterator[str]:
    """Each as often as the others, in random order."""
    while True:
        yield from chance.sample(VICTIMS, len(VICTIMS))


def _kill(victim: str, chance: random.Random, engine: Engine, services: Services, data_dir: Path) -> None:
    """Kills it, once it can be found."""
    pids: dict[str, int | None] = {"service": chance.choice(services.processes).pid}

    def found() -> bool:
        pids.update(running_pids(data_dir), projector=_projector(engine))
        return pids.get(victim) is not None

    _await(found, f"there is no {victim}")
    pid = pids[victim]
    if pid is not None:
        services.kill(pid)


def _projector(engine: Engine) -> int | None:
    """The process that holds the lock for storing checkpoints."""
    with suppress(SQLAlchemyError), engine.connect() as db:
        pid: int | None = db.execute(text(_PROJECTOR), {"lock": PROJECTOR_LOCK}).scalar()
        return pid
    return None


def _compared(engine: Engine) -> list[str]:
    """Checkpoint and log against a recount, as soon as Postgres answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = check(engine, Settings().feedback_weights)
        except (SQLAlchemyError, psycopg2.Error):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        return found.differences if found.since is not None else ["there is no checkpoint"]


def _answered(url: str, engine: Engine) -> list[str]:
    """What the service's own state says, against a recount."""

    def counted() -> bool:
        with suppress(httpx.HTTPError):
            sent = httpx.post(f"{url}/events", json={"user_id": "last", "item_id": "i0", "kind": "click"}, timeout=10)
            asked = {"user_id": "last", "min_watermark": sent.json().get("watermark", "x")}
            return httpx.get(f"{url}/recommend", params=asked, timeout=10).status_code == 200
        return False

    _await(counted, f"{url} does not count")
    shown = httpx.get(f"{url}/recommend/popular", params={"window": "all", "limit": 1000}, timeout=10).json()["items"]
    totals = recount(engine, Settings().feedback_weights)[0].totals()
    with engine.connect() as db:
        rows = {item_id: row for item_id, row in db.execute(text("select item_id, row from items"))}
    return [
        f"{url}: {item['item_id']} is {item['score']} instead of {totals[rows[item['item_id']]]}"
        for item in shown
        if not np.isclose(item["score"], totals[rows[item["item_id"]]], rtol=1e-5)
    ]


def _await(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(failure)
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="segue-chaos-", ignore_cleanup_errors=True) as name:
        # The unprivileged user that Postgres runs as must get in.
        Path(name).chmod(0o755)
        yield Path(name)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    with folder() as data_dir:
        report = chaos(data_dir, asked.kills, asked.seed, say=lambda line: print(line, flush=True))
    print(report)
    sys.exit(1 if report.differences else 0)


if __name__ == "__main__":
    main()
