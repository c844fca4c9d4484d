"""API.md, Administration: a training on demand, from its order to the answers of both processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.importers.movietweetings import import_movietweetings
from app.storage.database import open_engine
from models.recipes import RECIPES
from tests.patience import until
from tests.service.conftest import Service, Stores, running
from tests.service.test_recommend import recommend, someone
from tests.service.test_replay import write_log

WORKER = [sys.executable, "-m", "app.cli", "worker", "--burst"]
LONGEST_SECONDS = 600


def order(service: Service, **parameters: Any) -> str:
    answer = service.client.post("/admin/train", json=parameters)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["status"], job["progress"], job["started_at"]) == ("queued", 0, None)
    assert job["parameters"] == {"activate": True, "evaluate": True, "seed": 0} | parameters
    found: str = job["job_id"]
    return found


def job_at(service: Service, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get(f"/admin/jobs/{job_id}").json()
    return found


@pytest.fixture
def pair(
    stores: Stores, new_database: Callable[[], str], redis_url: str, tmp_path: Path
) -> Iterator[tuple[Service, Service]]:
    """Two processes over stores of their own, with so few events that a training takes seconds."""
    own = {"DATABASE_URL": new_database(), "REDIS_URL": redis_url, "SEGUE_DATA_DIR": str(tmp_path / "var")}
    engine = open_engine(own["DATABASE_URL"])
    import_movietweetings(engine, write_log(tmp_path / "log"), shift_to_now=True)
    engine.dispose()
    environment = stores.environment | own
    with running(environment) as a, running(environment) as b:
        yield a, b


def test_a_training_is_worked_off_with_visible_progress_and_both_processes_serve_its_release(
    pair: tuple[Service, Service],
) -> None:
    a, b = pair
    job_id = order(a, evaluate=False, seed=7)
    seen = []
    with subprocess.Popen(WORKER, env=a.environment, stdin=subprocess.DEVNULL) as worker:
        deadline = time.monotonic() + LONGEST_SECONDS
        while worker.poll() is None:
            assert time.monotonic() < deadline, f"the worker is at {seen[-1]}"
            seen.append(job_at(b, job_id))
            time.sleep(0.1)
    job = job_at(b, job_id)
    assert (job["status"], job["progress"], job["error"]) == ("succeeded", 1, None)
    assert job["created_at"] < job["started_at"] < job["finished_at"]
    steps = {each["step"] for each in seen if each["status"] == "running"}
    assert any(name in step for step in steps for name in RECIPES), steps

    release = job["result"]["release_id"]
    assert job["result"]["activated"]
    for service in pair:
        until(lambda service=service: recommend(service, someone())["release"] == release)
    audited = a.client.get("/admin/audit", params={"limit": 10}).json()["items"]
    assert {"train", "release.activate"} <= {entry["action"] for entry in audited}


def test_a_training_on_too_little_fails_and_says_why(
    stores: Stores, new_database: Callable[[], str], redis_url: str, tmp_path: Path
) -> None:
    empty = {"DATABASE_URL": new_database(), "REDIS_URL": redis_url, "SEGUE_DATA_DIR": str(tmp_path)}
    with running({**stores.environment, **empty}) as service:
        job_id = order(service)
        subprocess.run(WORKER, env=service.environment, stdin=subprocess.DEVNULL, timeout=LONGEST_SECONDS, check=False)
        job = job_at(service, job_id)
        assert (job["status"], job["result"]) == ("failed", None)
        assert "0 interactions are too few" in job["error"]
        assert recommend(service, someone())["route"] == "degraded"


def test_how_to_train_is_checked_by_field(a: Service) -> None:
    for field, value in {"seed": -1, "activate": "yes", "evaluate": None, "mood": 1}.items():
        answer = a.client.post("/admin/train", json={field: value})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["loc"] == ["body", field]
