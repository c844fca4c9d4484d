"""What a warm /recommend costs, as a multiple of a bare FastAPI `GET /hello`; and the memory of 1, 2 and 4 workers.

    python -m benchmarks.serving [--data var/benchmark] [--rounds 5] [--seconds 4] [--users 1000]
                                [--connections 8] [--events 20] [--no-memory]

Imports the bundled MovieTweetings data into embedded servers of its own below `--data` and trains a release, which
takes minutes the first time and is reused afterwards. Then one service with one worker, as `segue serve` starts it, and
beside it a bare FastAPI application under the same uvicorn flags and without middleware, take turns: hello, recommend,
recommend while events trickle in, and so on. After events each user's first answer costs what it does beside them, also
in the turn without: `--events 0` leaves the turns with them out. Asked are established users in random order, each once
before any is asked again; every answer is 10 items, ranked by the blend.

CPU is that of the worker's process with all its threads, until a moment after the last answer: impressions, pinned
pages, the refresher and the live signals are in it, nothing is subtracted. Postgres and Valkey are not. On a machine
that others use, only the ratios say something.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil  # type: ignore[import-untyped]
from fastapi import FastAPI
from sqlalchemy import text

from app.serving.routing import FEW_INTERACTIONS
from app.settings import Settings
from app.storage.database import open_engine
from app.storage.embedded import embedded_servers
from app.storage.release_files import current_id
from benchmarks._http_load import Cost, ask, get, load, post

KEY = "key-of-the-benchmark"
START_SECONDS = 60
WARM_UP_SECONDS = 2.0
WORKERS = (1, 2, 4)

_KNOWN = """
    SELECT user_id FROM users JOIN interactions ON users.row = user_row
    GROUP BY user_id HAVING count(DISTINCT item_row) >= :least
"""


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, default=Path("var/benchmark"))
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=4)
    options.add_argument("--users", type=int, default=1_000, help="whom to ask, a random sample of those known")
    options.add_argument("--connections", type=int, default=8)
    options.add_argument("--events", type=float, default=20, help="per second that trickle in; 0: no such turn")
    options.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    asked = options.parse_args()
    with ExitStack() as stack:
        environment, users, items = stack.enter_context(prepared(asked.data, asked.users))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {len(items):,} items, {len(users):,} users")
        compare(environment, users, items, asked)
        if asked.memory:
            for workers in WORKERS:
                print(memory_of(environment, users, workers, asked.connections))


def bare() -> FastAPI:
    """What the service is compared with: the first application of FastAPI's tutorial, hence without annotations,
    which would add a response model."""
    app = FastAPI()

    @app.get("/hello")
    async def hello():  # type: ignore[no-untyped-def]
        return {"message": "Hello World"}

    return app


@contextmanager
def prepared(data: Path, n_users: int) -> Iterator[tuple[dict[str, str], list[str], list[str]]]:
    """The environment of a service over the demo's data and a trained release; a sample of known users, and items."""
    own = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    own |= {"SEGUE_DATA_DIR": str(data.resolve()), "SEGUE_ADMIN_KEY": KEY, "SEGUE_LOG_LEVEL": "warning"}
    if current_id(Settings(data_dir=data).releases_dir) is None:
        subprocess.run([sys.executable, "-m", "app.cli", "demo", "--no-serve"], env=own, check=True)
    with embedded_servers(data) as servers:
        engine = open_engine(servers.database_url)
        with engine.connect() as db:
            users = sorted(db.execute(text(_KNOWN), {"least": FEW_INTERACTIONS}).scalars())
            items = sorted(db.execute(text("SELECT item_id FROM items WHERE deleted_at IS NULL")).scalars())
        engine.dispose()
        own |= {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        yield own, random.Random(0).sample(users, min(n_users, len(users))), items


def compare(environment: dict[str, str], users: list[str], items: list[str], asked: argparse.Namespace) -> None:
    with serving(environment) as (service, worker), serving_bare(environment) as (hello, bare_process):
        recommend = requests_of(service, users)
        greet = [get("/hello", key=KEY)]
        events = (event_of(random.choice(users), random.choice(items)) for _ in iter(int, 1))

        def one(url: str, process: psutil.Process, requests: list[bytes], **more: Any) -> Cost:
            return load(url, process, requests, seconds=asked.seconds, connections=asked.connections, **more)

        turns: dict[str, Callable[[], Cost]] = {
            "hello": lambda: one(hello, bare_process, greet),
            "recommend": lambda: one(service, worker, recommend),
        }
        if asked.events:
            turns[f"with {asked.events:g} events/s"] = lambda: one(
                service, worker, recommend, beside=events, beside_per_second=asked.events
            )
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(asked.rounds)]
        for name in turns:
            print(line(name, [turn[name] for turn in rounds], [turn["hello"] for turn in rounds]))


def line(name: str, costs: list[Cost], hellos: list[Cost]) -> str:
    ratios = sorted(cost.cpu_us / hello.cpu_us for cost, hello in zip(costs, hellos, strict=True))
    cpu, p50, p99 = (
        statistics.median(getattr(cost, figure) for cost in costs) for figure in ("cpu_us", "p50_ms", "p99_ms")
    )
    return (
        f"{name:18} {cpu:7,.0f} us of CPU   x{statistics.median(ratios):5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        f"   p50 {p50:6.2f} ms  p99 {p99:6.2f} ms   {sum(cost.requests for cost in costs):,} requests"
    )


def requests_of(service: str, users: list[str]) -> list[bytes]:
    """One request for each established user, all of whom have been asked once.

    Raises RuntimeError where the blend did not answer them.
    """
    requests = [get("/recommend", key=KEY, user_id=user) for user in users]
    pages = [orjson.loads(body) for body in ask(service, requests)]
    wrong = [page for page in pages if page["recommender"] != "blend" or len(page["items"]) != 10]
    if wrong:
        raise RuntimeError(f"not what is to be measured; is the release of another version? {wrong[0]}")
    return [request for request, page in zip(requests, pages, strict=True) if page["route"] == "established"]


def event_of(user: str, item: str) -> bytes:
    return post("/events", orjson.dumps({"user_id": user, "item_id": item, "kind": "view"}), key=KEY)


@contextmanager
def serving(environment: dict[str, str], workers: int = 1) -> Iterator[tuple[str, psutil.Process]]:
    """`segue serve`, without a worker for jobs."""
    command = [sys.executable, "-m", "app.cli", "serve", "--no-worker", "--workers", str(workers)]
    with _started(command, environment, "/readyz") as found:
        yield found


@contextmanager
def serving_bare(
    environment: dict[str, str], application: str = "benchmarks.serving:bare"
) -> Iterator[tuple[str, psutil.Process]]:
    """An application that answers GET /hello, under the flags that `segue serve` gives uvicorn."""
    flags = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--no-server-header", "--log-level=warning"]
    command = [sys.executable, "-m", "uvicorn", "--factory", application, *flags]
    with _started(command, environment, "/hello") as found:
        yield found


@contextmanager
def _started(command: list[str], environment: dict[str, str], path: str) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--port", str(port)], env=environment, **silent) as process:  # type: ignore[call-overload]
        try:
            _await(url, path, process)
            yield url, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _await(url: str, path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask(url, [get(path, key=KEY)])
        except (OSError, RuntimeError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"{url}{path} did not answer within {START_SECONDS} s")


def memory_of(environment: dict[str, str], users: list[str], workers: int, connections: int) -> str:
    """PSS: what several processes share is divided among them."""
    requests = [get("/recommend", key=KEY, user_id=user) for user in users]
    with serving(environment, workers) as (url, parent):
        load(url, parent, requests, seconds=WARM_UP_SECONDS * workers, connections=connections * workers)
        each = [_pss_mib(process.pid) for process in (parent, *parent.children(recursive=True))]
    return f"{workers} workers: {sum(each):,.0f} MiB in all   " + " + ".join(f"{mib:.0f}" for mib in each)


def _pss_mib(pid: int) -> float:
    for found in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
        if found.startswith("Pss:"):
            return int(found.split()[1]) / 1024
    raise RuntimeError(f"process {pid}: no PSS; this needs Linux")


if __name__ == "__main__":
    main()
