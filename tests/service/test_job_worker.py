"""The job worker beside the service goes with it, however the service ends."""

import signal

import psutil
import pytest

from tests.patience import until
from tests.processes import command_line, is_living
from tests.service.conftest import Service, Stores, running
from tests.service.test_training import job_at


def worker_of(service: Service) -> psutil.Process:
    (worker,) = (child for child in psutil.Process(service.process.pid).children() if "worker" in command_line(child))
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
        until(lambda: job_at(service, job_id)["status"] == "running")
        trainings = worker.children()
        service.process.kill()
        service.process.wait(60)
        await_end_of(worker, *trainings)
    with running(stores.environment) as service:
        until(lambda: job_at(service, job_id)["status"] != "running")
        job = job_at(service, job_id)
    assert (job["status"], job["error"]) == ("failed", "the worker died")


def await_end_of(*processes: psutil.Process) -> None:
    until(lambda: not any(map(is_living, processes)))
