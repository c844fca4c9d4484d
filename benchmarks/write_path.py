"""How many events a second one process makes durable, and how long each request waits.

    python -m benchmarks.write_path [--seconds 5] [--users 10000] [--items 10000]

Runs on DATABASE_URL and REDIS_URL in a database of its own, dropped afterwards; without them on embedded servers in
a temporary folder. Events go straight into `app.feedback.ingest`, from tasks of one event loop, as handlers do it;
one in four is a like, which also updates the likes. They are made beforehand, as that is their senders' work. HTTP is
not part of it, see `events_http`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from app.feedback.events import Event
from app.feedback.ingest import Ingest
from app.settings import Settings
from app.storage.database import migrate, open_engine
from app.storage.embedded import embedded_servers
from app.storage.redis import open_sync
from benchmarks._servers_cpu import ServersCpu, shares

KINDS = ("like", "view", "click", "view")
LOADS = ((1, 1), (64, 1), (8, 100), (64, 100))
"""Concurrent tasks, and events per request."""
MOST_PER_SECOND = 30_000
"""So many events are made for each second."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one load came to."""

    events_per_second: float
    waits_ms: list[float]
    cpu: str
    """CPU time of each process per event."""

    def line(self, tasks: int, batch: int) -> str:
        p50, p99 = statistics.median(self.waits_ms), sorted(self.waits_ms)[int(len(self.waits_ms) * 0.99)]
        return (
            f"{tasks:5} tasks x {batch:4} events: {self.events_per_second:9,.0f} events/s"
            f"   wait p50 {p50:6.1f} ms  p99 {p99:6.1f} ms   CPU per event: {self.cpu}"
        )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--users", type=int, default=10_000)
    options.add_argument("--items", type=int, default=10_000)
    asked = options.parse_args()
    with ExitStack() as stack:
        database_url, redis_url = stack.enter_context(stores())
        engine = open_engine(database_url)
        stack.callback(engine.dispose)
        populate(engine, asked.users, asked.items)
        cache = stack.enter_context(open_sync(redis_url, timeout_seconds=1))
        ingest = Ingest(engine, cache, Settings(ingest_queue=50_000))
        stack.callback(ingest.close)
        cpu = ServersCpu(database_url, redis_url)
        asyncio.run(load(ingest, asked, cpu, seconds=1, tasks=8, batch=10))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for tasks, batch in LOADS:
            print(asyncio.run(load(ingest, asked, cpu, asked.seconds, tasks, batch)).line(tasks, batch))


@contextmanager
def stores() -> Iterator[tuple[str, str]]:
    """Urls of an empty, migrated database and of a cache."""
    database_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    with ExitStack() as stack:
        if not (database_url and redis_url):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segue-benchmark-")))
            folder.chmod(0o755)
            servers = stack.enter_context(embedded_servers(folder))
            database_url, redis_url = servers.database_url, servers.redis_url
        own = stack.enter_context(own_database(database_url))
        migrate(own)
        yield own, redis_url


@contextmanager
def own_database(url: str) -> Iterator[str]:
    name = f"segue_benchmark_{uuid4().hex[:12]}"
    parsed = make_url(url).set(drivername="postgresql+psycopg2")
    admin = create_engine(parsed, isolation_level="AUTOCOMMIT")
    with admin.connect() as db:
        db.execute(text(f'CREATE DATABASE "{name}"'))
    try:
        yield parsed.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as db:
            db.execute(text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        admin.dispose()


def populate(engine: Engine, users: int, items: int) -> None:
    with engine.begin() as db:
        for table, column, count in (("users", "user_id", users), ("items", "item_id", items)):
            names = f"INSERT INTO {table} ({column}) SELECT 'n' || n FROM generate_series(1, :count) AS n"  # noqa: S608
            db.execute(text(names), {"count": count})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        db.execute(text("ANALYZE"))


async def load(  # noqa: PLR0917 - what to load, and how much
    ingest: Ingest, asked: argparse.Namespace, cpu: ServersCpu, seconds: float, tasks: int, batch: int
) -> Figures:
    """Keeps `tasks` requests of `batch` events under way for so long, or until all that were made are sent."""
    made = events(asked.users, asked.items, int(MOST_PER_SECOND * seconds))
    waits_ms: list[float] = []
    stored = 0
    stop = time.perf_counter() + seconds

    async def one_task() -> None:
        nonlocal stored
        while (started := time.perf_counter()) < stop and (some := list(islice(made, batch))):
            receipt = await ingest.submit(some)
            waits_ms.append((time.perf_counter() - started) * 1_000)
            stored += receipt.accepted

    before, started = cpu.seconds(), time.perf_counter()
    await asyncio.gather(*(one_task() for _ in range(tasks)))
    elapsed = time.perf_counter() - started
    return Figures(stored / elapsed, waits_ms, shares(before, cpu.seconds(), stored))


def events(users: int, items: int, count: int) -> Iterator[Event]:
    """Made when this is called; their ids are in no order, as those of clients."""
    now = datetime.now(UTC)
    return iter(
        [
            Event(
                f"{random.getrandbits(128):032x}",
                f"n{random.randint(1, users)}",
                f"n{random.randint(1, items)}",
                random.choice(KINDS),
                None,
                now,
            )
            for _ in range(count)
        ]
    )


if __name__ == "__main__":
    main()
