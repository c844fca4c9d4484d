"""The job worker beside the service goes with it, however the service ends."""

import signal
import time
from pathlib import Path

import pytest

from tests.service.conftest import Service, Stores, running

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def worker_of(service: Service) -> int:
    (worker,) = (pid for pid in children(service.process.pid) if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return worker


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_idle_worker_goes_with_it(stores: Stores, end: signal.Signals) -> None:
    with running(stores.environment, "--worker") as service:
        worker = worker_of(service)
        service.process.send_signal(end)
        service.process.wait(60)
        await_end_of(worker)


def test_a_training_under_way_ends_with_the_service_and_its_job_says_so(stores: Stores) -> None:
    with running(stores.environment, "--worker") as service:
        worker = worker_of(service)
        job_id = service.client.post("/admin/train", json={"activate": False}).json()["job_id"]
        deadline = time.monotonic() + 60
        while service.client.get(f"/admin/jobs/{job_id}").json()["status"] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        trainings = children(worker)
        service.process.kill()
        service.process.wait(60)
        await_end_of(worker, *trainings)
    with running(stores.environment) as service:
        job = service.client.get(f"/admin/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("failed", "the worker died")


def await_end_of(*pids: int) -> None:
    deadline = time.monotonic() + 60
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"{left} still live"
        time.sleep(0.1)
