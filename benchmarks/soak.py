"""Full load on one service for as long as you like: whether its memory, files and threads stay what they are.

    python -m benchmarks.soak [--minutes 30] [--every 60] [--connections 16] [--data var/benchmark] [--most 60]

The service is as `segue serve` starts it, over the demo's data and a trained release below `--data` (made the first
time, which takes minutes). Before it begins each established user clicks on as many items as are kept of a user, and
each stranger on one: what pasts take that grow is no leak, and not looked for here. Every connection sends the next
request as soon as the last is answered: recommendations and their later pages, events one by one and in batches,
similar and popular items, and now and then what is refused. A line per `--every` seconds says what the service holds;
of its memory the most that was found in that time, for what is free is given back once a minute. After a warm-up of a
third of the time a straight line is fitted through the memory of the service's processes (PSS: shared pages are
divided) and through that of Redis; exit 1 if one grows by more than `--most` MiB an hour, where a request failed, or
where at the end something is left in a queue.

Slates are pinned for a minute here, not for half an hour: else Redis is full only after that.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from uuid import uuid4

import numpy as np
import orjson
import psutil  # type: ignore[import-untyped]
import redis
import uvloop
from sqlalchemy import Engine, text

from app.settings import Settings
from app.storage.database import open_engine
from benchmarks._http_load import ask, connected, get, post
from benchmarks.serving import KEY, _pss_mib, prepared, serving

USERS = 1_000
STRANGERS = 20_000
BATCH = 100
WARM_UP_SHARE = 1 / 3
SETTINGS = {"SEGUE_CURSOR_TTL_SECONDS": "60"}
DRAIN_SECONDS = 30.0
LOOK_SECONDS = 5.0
FEWEST_SAMPLES = 4
"""After the warm-up; fewer tell nothing about growth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the service holds at one moment, and what it did since the last; of its memory the most since then."""

    seconds: float
    requests_per_second: float
    refused: int
    failed: int
    pss_mib: float
    rss_mib: float
    files: int
    threads: int
    redis_mib: float
    postgres_connections: int
    queued: int


class Load:
    """Connections that are never idle, and what became of their requests."""

    def __init__(self, url: str, users: list[str], items: list[str]) -> None:
        self._url, self._users, self._items = url, users, items
        self.answered: Counter[str] = Counter()

    async def keep_up(self, connections: int, stop: asyncio.Event) -> None:
        await asyncio.gather(*(self._one(stop) for _ in range(connections)))

    async def _one(self, stop: asyncio.Event) -> None:
        connection, cursor = await connected(self._url), None
        while not stop.is_set():
            kind, request = self._next_page(*cursor) if cursor and random.random() < 0.3 else self._request()
            try:
                body = await connection.answer(request)
            except (RuntimeError, ConnectionError) as error:
                # Only what was meant to be refused may be.
                self.answered["refused" if kind == "refused" and "answered 4" in str(error) else "failed"] += 1
                if isinstance(error, ConnectionError):
                    connection = await connected(self._url)
                continue
            self.answered[kind] += 1
            cursor = _cursor(body) if kind == "recommend" else cursor
        connection.close()

    def _request(self) -> tuple[str, bytes]:
        known = random.random() < 0.8
        user = random.choice(self._users) if known else stranger(random.randrange(STRANGERS))
        item, dice = random.choice(self._items), random.random()
        if dice < 0.55:
            return "recommend", get("/recommend", key=KEY, user_id=user)
        if dice < 0.75:
            return "event", post("/events", orjson.dumps(_event(user, item)), key=KEY)
        if dice < 0.78:
            batch = [_event(random.choice(self._users), random.choice(self._items)) for _ in range(20)]
            return "batch", post("/events", orjson.dumps(batch), key=KEY)
        if dice < 0.86:
            return "similar", get(f"/recommend/similar/{item}", key=KEY)
        if dice < 0.94:
            return "popular", get("/recommend/popular", key=KEY, window=random.choice(("1h", "7d", "all")))
        return "refused", random.choice(_REFUSED)

    def _next_page(self, user: str, cursor: str) -> tuple[str, bytes]:
        return "recommend", get("/recommend", key=KEY, user_id=user, cursor=cursor)


def full_pasts(users: list[str], items: list[str], length: int) -> Iterator[bytes]:
    """Requests after which as much is kept of everybody as ever will be, in random order."""
    pairs = [(user, item) for user in users for item in random.sample(items, length)]
    pairs += [(stranger(number), random.choice(items)) for number in range(STRANGERS)]
    events = [_event(user, item) | {"kind": "click"} for user, item in pairs]
    random.shuffle(events)
    for start in range(0, len(events), BATCH):
        yield post("/events", orjson.dumps(events[start : start + BATCH]), key=KEY)


def stranger(number: int) -> str:
    return f"stranger {number}"


_REFUSED = [
    get("/recommend", key="a wrong key", user_id="ann"),
    get("/recommend", key=KEY),
    get("/recommend", key=KEY, user_id="ann", limit="9999"),
    get("/nowhere", key=KEY),
    get("/recommend/similar/nothing%20like%20it", key=KEY),
    post("/events", b"{", key=KEY),
    post("/events", b'[{"user_id": "ann"}]' + b" " * 100_000, key=KEY),
]


def _cursor(body: bytes) -> tuple[str, str] | None:
    """Whose page comes next, and which."""
    page = orjson.loads(body)
    return (page["user_id"], page["next_cursor"]) if page["next_cursor"] else None


def _event(user: str, item: str) -> dict[str, str]:
    kind = random.choice(("view", "click", "like", "impression"))
    return {"event_id": uuid4().hex, "user_id": user, "item_id": item, "kind": kind}


class Watch:
    """Looks at the service from outside."""

    def __init__(self, url: str, parent: psutil.Process, engine: Engine, cache: redis.Redis, load: Load) -> None:
        self._url, self._parent, self._engine, self._cache, self._load = url, parent, engine, cache, load
        self._started = self._last = time.monotonic()
        self._before: Counter[str] = Counter()
        self._most_pss = self._most_rss = 0.0

    def look(self) -> None:
        """At the memory, between two samples."""
        processes = self._processes()
        self._most_pss = max(self._most_pss, sum(_pss_mib(process.pid) for process in processes))
        self._most_rss = max(self._most_rss, sum(process.memory_info().rss for process in processes) / 2**20)

    def _processes(self) -> list[psutil.Process]:
        return [self._parent, *self._parent.children(recursive=True)]

    def sample(self) -> Sample:
        now, answered = time.monotonic(), self._load.answered.copy()
        since, elapsed = answered - self._before, now - self._last
        self._before, self._last = answered, now
        self.look()
        pss, rss, self._most_pss, self._most_rss = self._most_pss, self._most_rss, 0.0, 0.0
        processes = self._processes()
        with self._engine.connect() as db:
            connections = db.execute(text("SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^segue'"))
        return Sample(
            seconds=now - self._started,
            requests_per_second=since.total() / elapsed,
            refused=since["refused"],
            failed=since["failed"],
            pss_mib=pss,
            rss_mib=rss,
            files=sum(process.num_fds() for process in processes),
            threads=sum(process.num_threads() for process in processes),
            redis_mib=self._cache.info("memory")["used_memory"] / 2**20,
            postgres_connections=connections.scalar_one(),
            queued=self.queued(),
        )

    def queued(self) -> int:
        """Of everything that waits, but for connections, which this program holds."""
        lines = ask(self._url, [get("/metrics")])[0].decode().splitlines()
        waiting = [line for line in lines if line.startswith("segue_queue_length{") and '"connections"' not in line]
        return round(sum(float(line.rpartition(" ")[2]) for line in waiting))


async def soak(load: Load, watch: Watch, asked: argparse.Namespace, say: Callable[[str], None]) -> list[Sample]:
    stop, samples = asyncio.Event(), list[Sample]()
    under_way = asyncio.create_task(load.keep_up(asked.connections, stop))
    until = time.monotonic() + asked.minutes * 60
    while (left := until - time.monotonic()) > 0 and not under_way.done():
        due = time.monotonic() + min(asked.every, left)
        while (pause := min(LOOK_SECONDS, due - time.monotonic())) > 0:
            await asyncio.sleep(pause)
            await asyncio.to_thread(watch.look)
        samples.append(await asyncio.to_thread(watch.sample))
        say(row(samples[-1]))
    stop.set()
    await under_way
    return samples


def heading() -> str:
    return " ".join(f"{field.name.replace('_per_second', '/s'):>{_width(field.name)}}" for field in fields(Sample))


def row(sample: Sample) -> str:
    return " ".join(f"{getattr(sample, field.name):{_width(field.name)},.0f}" for field in fields(Sample))


def _width(name: str) -> int:
    return max(8, len(name.replace("_per_second", "/s")))


def growth(samples: list[Sample], of: Callable[[Sample], float]) -> float:
    """MiB per hour, of the line that fits best after the warm-up; nan where too little is left to tell."""
    settled = [each for each in samples if each.seconds > samples[-1].seconds * WARM_UP_SHARE]
    if len(settled) < FEWEST_SAMPLES:
        return float("nan")
    slope, _ = np.polyfit([each.seconds / 3_600 for each in settled], [of(each) for each in settled], 1)
    return float(slope)


def verdict(samples: list[Sample], left: int, most: float) -> Iterator[tuple[str, bool]]:
    """What was found, and whether it is well."""
    for name, of in (("the service", lambda each: each.pss_mib), ("Redis", lambda each: each.redis_mib)):
        rate = growth(samples, of)
        yield f"memory of {name}: {rate:+.1f} MiB an hour, at most {most:g} allowed", rate <= most
    failed = sum(each.failed for each in samples)
    yield f"{failed} requests failed", failed == 0
    for name in ("files", "threads", "postgres_connections"):
        first, last = (getattr(each, name) for each in (samples[int(len(samples) * WARM_UP_SHARE)], samples[-1]))
        yield f"{name.replace('_', ' ')}: {first} after the warm-up, {last} at the end", last <= first + 10
    yield f"{left} left in queues", left == 0


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--every", type=float, default=60, help="seconds between two looks")
    options.add_argument("--connections", type=int, default=16)
    options.add_argument("--data", type=Path, default=Path("var/benchmark"))
    options.add_argument("--most", type=float, default=60, help="MiB an hour by which memory may grow")
    asked = options.parse_args()
    with ExitStack() as stack:
        environment, users, items = stack.enter_context(prepared(asked.data, USERS))
        url, parent = stack.enter_context(serving(environment | SETTINGS))
        engine = open_engine(environment["DATABASE_URL"])
        stack.callback(engine.dispose)
        cache = stack.enter_context(redis.Redis.from_url(environment["REDIS_URL"]))
        ask(url, full_pasts(users, items, Settings().history_length))
        load = Load(url, users, items)
        watch = Watch(url, parent, engine, cache, load)
        print(heading())
        samples = uvloop.run(soak(load, watch, asked, lambda line: print(line, flush=True)))
        print("; ".join(f"{count:,} {kind}" for kind, count in load.answered.most_common()))
        found = list(verdict(samples, _drained(watch), asked.most))
    for line, is_well in found:
        print(("ok    " if is_well else "FAILED ") + line)
    sys.exit(0 if all(is_well for _, is_well in found) else 1)


def _drained(watch: Watch) -> int:
    """What is left in the queues once nobody asks any more."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while (left := watch.queued()) and time.monotonic() < deadline:
        time.sleep(1)
    return left


if __name__ == "__main__":
    main()
