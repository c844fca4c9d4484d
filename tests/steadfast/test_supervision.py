"""What dies is started again, by whoever started it, also while something that it needs is away."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from uvicorn import Config

from app.cli import children
from app.cli.children import Worker
from app.storage.embedded import running_pids
from tests.processes import is_living
from tests.steadfast.calls import call
from tests.steadfast.services import SERVERS, Service

pytestmark = pytest.mark.xdist_group("service")

PATIENCE_S = 120.0

T = TypeVar("T")


@pytest.fixture
def service(data_dir: Path) -> Iterator[Service]:
    """One service with two workers, and one for jobs."""
    started = Service("A", 2, data_dir, jobs=True)
    try:
        awaited(lambda: started.starts() >= started.n_workers and started.is_complete, "it does not start")
        yield started
    finally:
        started.end()


def test_what_dies_while_postgres_is_away_neither_ends_the_others_nor_stays_away(
    service: Service, data_dir: Path
) -> None:
    supervisor, postgres = (psutil.Process(running_pids(data_dir)[name]) for name in ("supervisor", "postgres"))
    killed, survivor = service.workers()
    folder = Path(killed.environ()["PROMETHEUS_MULTIPROC_DIR"])
    awaited(lambda: list(folder.glob(f"gauge_live*_{killed.pid}.db")), "the worker does not count")
    (jobs,) = service.children("app.cli worker")

    supervisor.suspend()  # else Postgres would be back at once
    try:
        for process in (postgres, killed, jobs):
            process.kill()
        (another,) = awaited(lambda: started_since(service, killed, survivor), "the killed worker is not started again")
        awaited(lambda: not is_living(another), "it starts without Postgres")
        assert is_living(survivor), service.log_tail(60)
        awaited(lambda: answers(service), "it does not answer")
    finally:
        supervisor.resume()

    awaited(lambda: service.is_complete and set(running_pids(data_dir)) == SERVERS, "it is not complete again")
    assert list(folder.glob("*.db")), "nobody counts"
    assert not list(folder.glob(f"gauge_live*_{killed.pid}.db")), "the dead worker's queues are counted"
    awaited(lambda: service.children("app.cli worker") not in ([], [jobs]), "there is no worker for jobs")
    awaited(lambda: takes_events(service), "it takes no events")


def test_a_worker_that_is_silent_while_it_starts_is_not_hung_and_one_that_has_started_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "HANG_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        worker = Worker(
            Config("tests.steadfast.test_supervision:nothing", lifespan="off", log_level="error"), [listening]
        )
        worker.start()
        process = psutil.Process(worker.pid)
        try:
            process.suspend()
            assert worker.is_alive(timeout=0.1)
            process.resume()
            awaited(lambda: worker.is_alive() and worker.has_started, "it does not start")
            process.suspend()
            awaited(lambda: not worker.is_alive(timeout=0.1), "nobody notices that it hangs")
        finally:
            worker.kill()
            worker.join()


async def nothing(*_: object) -> None:
    """An application for which nobody asks."""


def started_since(service: Service, *before: psutil.Process) -> list[psutil.Process]:
    return [worker for worker in service.workers() if worker not in before]


def answers(service: Service) -> bool:
    return call(service.target, "GET", "/recommend?user_id=nobody", timeout_s=20).status == 200


def takes_events(service: Service) -> bool:
    event = '{"user_id": "somebody", "item_id": "i0", "kind": "view"}'
    return call(service.target, "POST", "/events", event, timeout_s=20).status == 202


def awaited(condition: Callable[[], T], failure: str) -> T:
    """What the condition says once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (said := condition()):
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)
    return said
