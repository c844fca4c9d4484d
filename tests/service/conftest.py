"""The service as it runs: two processes on two ports over the same Postgres and Redis, with a trained release."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from app.importers.movietweetings import import_movietweetings
from app.settings import Settings
from app.storage.database import open_engine
from app.training import releases
from app.training.extract import extract
from models import artifacts
from models.training import fit_recipes
from tests.conftest import Servers
from tests.service.sample import write_sample

START_SECONDS = 180
KEYS = {"read": "read-key-of-the-tests", "write": "write-key-of-the-tests", "admin": "admin-key-of-the-tests"}
PATIENT = {"SEGUE_REDIS_TIMEOUT_SECONDS": "20"}
"""Else a quarter of a second in which the machine does something else would be an outage."""
ANSWER_SECONDS = 120
"""What a client waits for one answer. How soon it comes is asked in benchmarks."""
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One of xdist's workers runs all tests of the service, so that it is trained and started once."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group("service"))


@dataclass(frozen=True)
class Service:
    """One running process. `client` carries the admin key, which opens everything."""

    url: str
    client: httpx.Client
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def as_(self, scope: str) -> httpx.Client:
        return client_of(self.url, KEYS[scope])


@dataclass(frozen=True)
class Stores:
    """A database with the sample data set, a Redis and a releases folder with one active release."""

    environment: dict[str, str]
    settings: Settings
    release_id: str


@pytest.fixture(scope="session")
def stores(
    servers: Servers, new_database: Callable[[], str], lasting_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Stores:
    """Imported and trained once for all tests of the service; a tenth of the demo's data, so that it takes seconds."""
    folder = tmp_path_factory.mktemp("service")
    environment = {
        "DATABASE_URL": new_database(),
        "REDIS_URL": lasting_redis_url,
        "SEGUE_DATA_DIR": str(folder / "var"),
        # Else one user in a hundred would get another order than the test has in mind.
        "SEGUE_EXPLORE_SHARE": "0",
        **PATIENT,
        **{f"SEGUE_{scope.upper()}_KEY": key for scope, key in KEYS.items()},
    }
    settings = Settings.model_validate(
        {
            "DATABASE_URL": environment["DATABASE_URL"],
            "REDIS_URL": environment["REDIS_URL"],
            "data_dir": Path(environment["SEGUE_DATA_DIR"]),
        }
    )
    engine = open_engine(environment["DATABASE_URL"])
    import_movietweetings(engine, write_sample(folder / "sample"), shift_to_now=True)
    engine.dispose()
    return Stores(environment, settings, train_release(settings))


def train_release(settings: Settings, names: Sequence[str] | None = None) -> str:
    """Fits, saves and activates a release, without the evaluation that `segue train` begins with.

    names: of the recipes; None: all
    """
    assert settings.database_url is not None
    engine = open_engine(settings.database_url)
    extracted = extract(engine, settings.feedback_weights)
    engine.dispose()
    release_id = releases.new_release_id()
    times = extracted.dataset.interactions.timestamps
    artifacts.save(
        settings.releases_dir / release_id,
        fit_recipes(extracted.dataset, names=names),
        database_id=str(extracted.database_id),
        row_of_position=extracted.row_of_position,
        data_window=(float(times[0]), float(times[-1])),
    )
    activate(settings, release_id)
    return release_id


def copy_release(settings: Settings, original: Path) -> str:
    """Another release with the same content, which is not active: fitting one takes half a minute."""
    # Of two ids that were made within a second one in 65,536 is the other.
    while (settings.releases_dir / (release_id := releases.new_release_id())).exists():
        pass
    shutil.copytree(original, settings.releases_dir / release_id)
    return release_id


def activate(settings: Settings, release_id: str) -> None:
    """As `segue train` does it."""
    engine = open_engine(str(settings.database_url))
    releases.register(engine, release_id, {"metrics": {}})
    releases.activate(engine, settings, release_id, actor="tests")
    engine.dispose()


@contextmanager
def running(environment: dict[str, str], *arguments: str, **more: str) -> Iterator[Service]:
    """One `segue serve` on a free port, until the block ends."""
    port = free_port()
    full = {**os.environ, **PATIENT, **environment, **more}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--no-worker", *arguments]
    with subprocess.Popen(command, env=full, stdin=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with client_of(url, KEYS["admin"]) as client:
                await_ready(client, process)
                yield Service(url, client, process, full)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


def client_of(url: str, key: str) -> httpx.Client:
    # The service closes a connection that nobody used for five seconds; httpx, by default, takes one that is as old.
    limits = httpx.Limits(keepalive_expiry=1)
    return httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=ANSWER_SECONDS, limits=limits)


def await_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the service ended with {process.returncode}"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"the service is not ready after {START_SECONDS} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def both(stores: Stores) -> Iterator[tuple[Service, Service]]:
    """Two processes over the same stores."""
    with running(stores.environment) as a, running(stores.environment) as b:
        yield a, b


@pytest.fixture
def a(both: tuple[Service, Service]) -> Service:
    return both[0]


@pytest.fixture
def b(both: tuple[Service, Service]) -> Service:
    return both[1]
