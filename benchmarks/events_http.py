"""What POST /events costs beside a bare FastAPI POST that does nothing, and how fast it takes batches.

    python -m benchmarks.events_http [--rounds 4] [--seconds 4] [--connections 64] [--batch 100]

Runs on DATABASE_URL and REDIS_URL in a database of its own, dropped afterwards; without them on embedded servers in
a temporary folder. One service with one worker, as `segue serve` starts it, and beside it a bare application under the
same uvicorn flags, which is sent the same requests and reads no body, take turns. Every event has an id of its own; one
in four is a like. CPU is that of the worker's process; Postgres, Valkey and the client take theirs beside it, so on few
cores the requests per second say less than the CPU does.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple
from uuid import uuid4

import orjson
from fastapi import FastAPI

from app.storage.database import open_engine
from benchmarks import serving
from benchmarks._http_load import Cost, load, post
from benchmarks._servers_cpu import ServersCpu, shares
from benchmarks.write_path import KINDS, populate, stores

USERS = ITEMS = 10_000
MADE_EVENTS = 200_000


def bare() -> FastAPI:
    """Reads no body and answers what POST /events answers. Without annotations: they would add a response model."""
    app = serving.bare()

    @app.post("/events")
    async def events():  # type: ignore[no-untyped-def]
        return {"accepted": 1, "duplicates": 0, "watermark": "48213"}

    return app


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--batch", type=int, default=100)
    asked = options.parse_args()
    with ExitStack() as stack:
        environment = stack.enter_context(prepared())
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        compare(environment, asked)


class prepared:  # noqa: N801 - a context manager, named like one
    """The environment of a service over empty stores with known users and items."""

    def __enter__(self) -> dict[str, str]:
        self._stack = ExitStack()
        database_url, redis_url = self._stack.enter_context(stores())
        engine = open_engine(database_url)
        populate(engine, USERS, ITEMS)
        engine.dispose()
        return {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SEGUE_ADMIN_KEY": serving.KEY,
            "SEGUE_LOG_LEVEL": "warning",
            "SEGUE_INGEST_QUEUE": "50000",
        }

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Turn(NamedTuple):
    """What is sent for some seconds. events: per request"""

    connections: int
    events: int = 1
    is_bare: bool = False


def compare(environment: dict[str, str], asked: argparse.Namespace) -> None:
    with (
        serving.serving(environment) as service,
        serving.serving_bare(environment, "benchmarks.events_http:bare") as nothing,
    ):

        def take(turn: Turn) -> Cost:
            requests = singles() if turn.events == 1 else batches(turn.events)
            url, process = nothing if turn.is_bare else service
            return load(url, process, requests, seconds=asked.seconds, connections=turn.connections)

        turns = {
            "no-op POST": Turn(asked.connections, is_bare=True),
            "POST /events": Turn(asked.connections),
            "one at a time": Turn(1),
            f"8 x {asked.batch}": Turn(8, asked.batch),
            f"16 x {asked.batch}": Turn(16, asked.batch),
        }
        for turn in turns.values():
            take(turn)
        rounds = [{name: take(turn) for name, turn in turns.items()} for _ in range(asked.rounds)]
        for name, turn in turns.items():
            costs, bases = [each[name] for each in rounds], [each["no-op POST"] for each in rounds]
            print(line(name, costs, bases, asked, turn.events))
        cpu = ServersCpu(environment["DATABASE_URL"], environment["REDIS_URL"])
        for name, turn in turns.items():
            if not turn.is_bare:
                before, cost, after = cpu.seconds(), take(turn), cpu.seconds()
                print(by_process(name, cost, shares(before, after, cost.requests * turn.events), turn.events))


def by_process(name: str, cost: Cost, others: str, events: int) -> str:
    """What each process takes of an event, in one more turn. others: the rest of the line"""
    return f"{name:16} CPU of an event: worker {cost.cpu_us / events:.0f} us  {others}"


def line(name: str, costs: list[Cost], bases: list[Cost], asked: argparse.Namespace, events: int) -> str:
    rate, cpu, p50, p99 = (
        statistics.median(values)
        for values in (
            [cost.requests * events / asked.seconds for cost in costs],
            [cost.cpu_us / events for cost in costs],
            [cost.p50_ms for cost in costs],
            [cost.p99_ms for cost in costs],
        )
    )
    shares = sorted(cost.requests * events / base.requests for cost, base in zip(costs, bases, strict=True))
    times = statistics.median(cost.cpu_us / events / base.cpu_us for cost, base in zip(costs, bases, strict=True))
    return (
        f"{name:16} {rate:8,.0f} events/s   {statistics.median(shares):5.2f} ({shares[0]:.2f} to {shares[-1]:.2f}) of"
        f" no-op's rate   {cpu:6.1f} us of CPU per event, x{times:.2f}   p50 {p50:6.1f} ms  p99 {p99:6.1f} ms"
    )


def singles() -> Iterator[bytes]:
    while True:
        yield post("/events", orjson.dumps(event()), key=serving.KEY)


def batches(size: int) -> Iterator[bytes]:
    """Bodies that were made beforehand, each with new ids of events: making them must not be what is measured."""
    bodies = bodies_of(size)
    while True:
        body = random.choice(bodies).replace(b"-" * 28, uuid4().hex[:28].encode())
        yield post("/events", body, key=serving.KEY)


@cache
def bodies_of(size: int) -> list[bytes]:
    """So many that few users do the same again with an item within a turn."""
    some = [[event() | {"event_id": f"{n:04d}{'-' * 28}"} for n in range(size)] for _ in range(MADE_EVENTS // size)]
    return [orjson.dumps(events) for events in some]


def event() -> dict[str, str]:
    return {
        "event_id": uuid4().hex,
        "user_id": f"n{random.randint(1, USERS)}",
        "item_id": f"n{random.randint(1, ITEMS)}",
        "kind": random.choice(KINDS),
        "timestamp": datetime.now(UTC).isoformat(),
    }


if __name__ == "__main__":
    main()
