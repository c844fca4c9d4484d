"""What POST /recommend/next costs beside a bare FastAPI POST that does nothing, and whether a session ever repeats.

    python -m benchmarks.next_track_http [--rounds 4] [--seconds 4] [--items 50000] [--sessions 0] [--tracks 100]

Runs on DATABASE_URL and REDIS_URL in a database of its own, dropped afterwards; without them on embedded servers in a
temporary folder. One service with one worker and a bare application under the same uvicorn flags take turns. Sessions
go on side by side, one for each connection, over all rounds; each call has a listen, which is stored in Postgres before
the answer. CPU is that of the worker's process; Postgres, Valkey and the client take theirs. The recommender's
own time is measured apart, in this process, on the same data: there is no release here, so it is `live_covisits`.

With --sessions, so many sessions of --tracks each are then played, every listen being the track that was given, over
two processes by turns; and each repeat is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import orjson
import uvloop
from fastapi import FastAPI

from app.feedback.sessions import LISTEN, Session
from app.importers.staging import Event, store_events
from app.resources import open_resources
from app.serving.next_candidates import SLACK, Situation, next_recommender, propose, session_query
from app.serving.popular_fills import PopularFills
from app.serving.session_rules import SessionRules
from app.settings import Settings
from app.storage.database import open_engine
from benchmarks import serving
from benchmarks._http_load import Connection, Cost, connected, load, post
from benchmarks.write_path import populate, stores

USERS = 2_000
LISTENS_PER_USER = 40
STYLES = 100
AT_ONCE = 32
CONNECTIONS = 32
RUN = uuid4().hex[:8]


def bare() -> FastAPI:
    """Reads no body and answers what POST /recommend/next answers. Without annotations: they would add a model."""
    app = serving.bare()

    @app.post("/recommend/next")
    async def next_track():  # type: ignore[no-untyped-def]
        return ANSWER

    return app


ANSWER = {
    "request_id": "01M80RBGW0PBSERYZ8P3B1M86S", "user_id": "n1", "session_id": "s1", "route": "listening",
    "recommender": "live_covisits", "release": None, "experiments": [],
    "items": [{"item_id": "n17", "position": 2, "score": 10.0, "source": "live_covisits", "promoted": False,
               "reason": {"code": "next_in_session", "item_id": "n3"}}],
    "next_cursor": None, "recorded": True, "new_session": False,
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=4)
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--items", type=int, default=50_000)
    options.add_argument("--sessions", type=int, default=0)
    options.add_argument("--tracks", type=int, default=100)
    asked = options.parse_args()
    with ExitStack() as stack:
        database_url, redis_url = stack.enter_context(stores())
        fill(database_url, asked.items)
        environment = {
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "SEGUE_ADMIN_KEY": serving.KEY,
            "SEGUE_LOG_LEVEL": "warning",
        }
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {asked.items:,} items")
        compare(environment, asked)
        uvloop.run(model_alone(database_url, redis_url, asked.items))
        if asked.sessions:
            count_repeats(environment, asked)


def fill(database_url: str, items: int) -> None:
    """Users and items, and listens of users who each keep to one of a hundred styles."""
    engine = open_engine(database_url, statement_timeout_seconds=600)
    populate(engine, USERS, items)
    choice, now = random.Random(20), time.time()
    listens = [
        Event(f"e{user}-{n}", f"n{user}", track_of(choice, user, items), "listen", choice.random(), now - n)
        for user in range(1, USERS + 1)
        for n in range(LISTENS_PER_USER)
    ]
    with engine.begin() as db:
        store_events(db, listens)
    engine.dispose()


def track_of(choice: random.Random, user: int, items: int) -> str:
    """One of the style that the user keeps to, the low numbers being the popular ones."""
    nth = int((items // STYLES) * choice.random() ** 3)
    return f"n{1 + user % STYLES + STYLES * nth}"


def compare(environment: dict[str, str], asked: argparse.Namespace) -> None:
    with (
        serving.serving(environment) as (service, worker),
        serving.serving_bare(environment, "benchmarks.next_track_http:bare") as (nothing, bare_process),
    ):

        def one(url: str, process: Any) -> Cost:
            return load(url, process, calls(asked.items), seconds=asked.seconds, connections=CONNECTIONS)

        turns: dict[str, Callable[[], Cost]] = {
            "no-op POST": lambda: one(nothing, bare_process),
            "POST /recommend/next": lambda: one(service, worker),
        }
        for turn in turns.values():
            turn()
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(asked.rounds)]
    base = [turn["no-op POST"].cpu_us for turn in rounds]
    for name in turns:
        costs = [turn[name] for turn in rounds]
        times = sorted(cost.cpu_us / each for cost, each in zip(costs, base, strict=True))
        cpu = statistics.median(cost.cpu_us for cost in costs)
        print(f"{name:22} {cpu:6.0f} us of CPU, x{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})")


def calls(items: int) -> Iterator[bytes]:
    choice = random.Random()
    while True:
        for session in range(AT_ONCE):
            user = 1 + session % USERS
            body = {"user_id": f"n{user}", "session_id": f"{RUN}-{session}", "listened": round(choice.random(), 2)}
            yield post(
                "/recommend/next", orjson.dumps(body | {"item_id": track_of(choice, user, items)}), key=serving.KEY
            )


async def model_alone(database_url: str, redis_url: str, items: int) -> None:
    """Microseconds of CPU of the recommender, and of all that is done to its answer, without Redis and Postgres."""
    settings = Settings.model_validate(
        {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "data_dir": Path("/nonexistent"), "log_level": "warning"}
    )
    choice = random.Random(22)
    async with open_resources(settings) as resources:
        inventory = await resources.inventories.caught_up(None)
        while not len(resources.live.state):
            await asyncio.sleep(0.1)
        rows = inventory.catalog.row_of
        situations, popular = [], PopularFills()
        for user in range(1, 201):
            heard = [(rows[track_of(choice, user, items)], choice.random(), 0.0) for _ in range(20)]
            session = Session("life").with_listen(np.array(heard, LISTEN))
            situations.append(Situation(f"n{user}", session, None, inventory, time.time(), False, 1, "s", popular))
        recommender = next_recommender(inventory)
        queries = [session_query(situation, 1 + SLACK) for situation in situations]
        own = microseconds(lambda n: recommender.next(queries[n]), len(queries))
        whole = microseconds(lambda n: propose(situations[n], SessionRules(), lookahead=1 + SLACK), len(situations))
    print(f"{recommender.name}: {own:.0f} us of CPU by itself, {whole:.0f} with the recipe and its fills")


def microseconds(call: Callable[[int], object], times: int) -> float:
    taken = []
    for n in range(times):
        began = time.thread_time()
        call(n)
        taken.append(time.thread_time() - began)
    return 1e6 * statistics.median(taken)


def count_repeats(environment: dict[str, str], asked: argparse.Namespace) -> None:
    with serving.serving(environment) as (one, _), serving.serving(environment) as (other, _):
        repeats = uvloop.run(all_sessions((one, other), asked.sessions, asked.tracks))
    print(f"{asked.sessions:,} sessions of {asked.tracks} tracks by turns over two processes: {repeats} repeats")


async def all_sessions(urls: tuple[str, str], sessions: int, tracks: int) -> int:
    """CONNECTIONS sessions at a time; answers with how many tracks came again."""
    waiting, began = iter(range(sessions)), time.monotonic()
    found: list[int] = []

    async def one_listener() -> None:
        connections = [await connected(url) for url in urls]
        for nth in waiting:
            found.append(await repeats_of(connections, f"r{nth}-{RUN}", tracks))
            if len(found) % 100 == 0:
                print(f"{len(found):,} sessions, {sum(found)} repeats, {time.monotonic() - began:.0f} s", flush=True)

    await asyncio.gather(*(one_listener() for _ in range(CONNECTIONS)))
    return sum(found)


async def repeats_of(connections: list[Connection], session: str, tracks: int) -> int:
    given: list[str] = []
    choice = random.Random(session)
    for turn in range(tracks):
        body: dict[str, object] = {"user_id": f"of-{session}", "session_id": session}
        if given:
            body |= {"item_id": given[-1], "listened": round(choice.random(), 2)}
        raw = post("/recommend/next", orjson.dumps(body), key=serving.KEY)
        answer = orjson.loads(await connections[turn % len(connections)].answer(raw))
        given += [item["item_id"] for item in answer["items"]]
    return tracks - len(set(given))


if __name__ == "__main__":
    main()
