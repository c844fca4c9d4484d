"""`segue replay` as it is typed, on a log small enough to know what must come out."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from sqlalchemy import text

from app.storage.database import open_engine
from app.storage.embedded import embedded_servers
from models.evaluation.replay import Feed
from tests.app.storage.conftest import data_dir  # noqa: F401 - a fixture
from tests.patience import until
from tests.processes import command_line, has_connections, is_living
from tests.service.conftest import PATIENT

EVENTS, USERS, NEWCOMERS, FILMS = 300, 40, 10, 30
BEFORE = 240
"""Four fifths: every event of the log is a first meeting."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log") / "log")


def write_log(folder: Path) -> Path:
    """MovieTweetings' layout. Four events share each moment, also around the cut; after it half are of newcomers."""
    folder.mkdir()
    draw = random.Random(1)
    known = [(user, film) for user in range(USERS) for film in range(FILMS)]
    new = [(user, film) for user in range(USERS, USERS + NEWCOMERS) for film in range(FILMS)]
    pairs = draw.sample(known, EVENTS)
    pairs[BEFORE + 1 :: 2] = draw.sample(new, len(pairs[BEFORE + 1 :: 2]))
    lines = [
        f"{user}::{film:07}::{draw.randint(0, 10)}::{1_365_000_000 + (number + 2) // 4 * 4_000}"
        for number, (user, film) in enumerate(pairs)
    ]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    (folder / "movies.dat").write_text("".join(f"{film:07}::Film {film} (2013)::Drama\n" for film in range(FILMS)))
    return folder


def replay(environment: dict[str, str], log: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "replay", str(log), "--format", "movietweetings", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def environment(new_database: Callable[[], str], redis_url: str) -> dict[str, str]:
    return {**os.environ, **PATIENT, "DATABASE_URL": new_database(), "REDIS_URL": redis_url}


def first_seen(log: Path, feed: Feed) -> int:
    """How many events after the cut are of users of whom the service knows nothing by then."""
    users = [line.split("::")[0] for line in (log / "ratings.dat").read_text().splitlines()]
    return sum(user not in users[: BEFORE + feed.known(event)] for event, user in enumerate(users[BEFORE:]))


def without_servers() -> dict[str, str]:
    """An environment that names none, so that there are embedded ones."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    return kept | PATIENT


def test_a_log_is_replayed_on_servers_that_come_and_go(log: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    ran = replay(without_servers() | {"TMPDIR": str(temporary)}, log, "--markdown", str(tmp_path / "replay.md"))

    assert ran.returncode == 0, ran.stderr
    assert f"{BEFORE} events imported and trained on, 60 events replayed" in ran.stderr.replace("\n", " ")
    assert "the service, as it routes" in ran.stdout
    assert "under what they were shown" in (tmp_path / "replay.md").read_text("utf-8")
    assert not list(temporary.glob("segue-*"))


@pytest.mark.parametrize("lag", [0, 20])
def test_each_answer_knows_the_events_before_it_less_the_lag(
    log: Path,
    tmp_path: Path,
    data_dir: Path,  # noqa: F811
    lag: int,
) -> None:
    """On servers of its own, where nobody else's transaction keeps an event from being counted in time."""
    kept = data_dir / "kept"
    ran = replay(
        without_servers(), log, "--lag", str(lag), "--json", str(tmp_path / "replay.json"), "--data-dir", str(kept)
    )

    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = orjson.loads((tmp_path / "replay.json").read_bytes())
    (run,) = found["runs"]
    assert found["counts"]["first meetings among them"] == run["groups"]["all"]["cases"] == EVENTS - BEFORE
    feed = Feed.behind(lag)
    assert run["groups"]["route new"]["cases"] == first_seen(log, feed)
    assert 0 < run["ndcg"] < run["hit_rate"] <= 1
    assert run["speed"]["answers 503"] == run["speed"]["reconnects"] == 0
    assert run["agreement"] > 0.9
    assert {"popularity", "blend"} <= set(run["recipes"])
    with embedded_servers(kept) as servers:
        assert stored(servers.database_url) == BEFORE + feed.known(EVENTS - BEFORE - 1)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_process_behind(log: Path, tmp_path: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-m", "app.cli", "replay", str(log), "--format", "movietweetings"]
    with subprocess.Popen(
        command, env=without_servers() | {"TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL, start_new_session=True
    ) as running:
        service = until(lambda: serving_below(running.pid))
        holders = processes_below(tmp_path)
        running.send_signal(end)
        running.wait(180)

    until(lambda: not any(is_living(process) for process in (service, *holders)))
    assert holders
    assert end is signal.SIGKILL or not list(tmp_path.iterdir())


def serving_below(pid: int) -> psutil.Process | None:
    """The `segue serve` that the process started, once it listens."""
    children = psutil.Process(pid).children()
    serving = [child for child in children if "serve" in command_line(child) and has_connections(child)]
    return serving[0] if serving else None


def processes_below(folder: Path) -> list[psutil.Process]:
    """Those that were told of the folder: the embedded servers and who watches over them."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(str(folder) in word for word in process.info["cmdline"] or ())]


def test_a_database_in_use_is_refused(log: Path, environment: dict[str, str]) -> None:
    engine = open_engine(environment["DATABASE_URL"])
    with engine.begin() as db:
        db.execute(text("insert into users (user_id) values ('u')"))
        db.execute(text("insert into items (item_id) values ('i')"))
        db.execute(text(_ONE_INTERACTION))
    engine.dispose()

    refused = replay(environment, log)

    assert refused.returncode == 1
    assert "DATABASE_URL" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stored(environment["DATABASE_URL"]) == 1


def test_what_can_not_be_is_refused_before_anything_is_done(
    log: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "kept").touch()
    for options, named in (
        (("--seeds", "2"), "--seeds 2"),
        (("--data-dir", str(tmp_path)), "not empty"),
        (("--share", "0.999"), "--share"),
    ):
        refused = replay(environment, log, *options)
        assert refused.returncode != 0
        assert named in refused.stderr.replace("\n", " ")
        assert "Traceback" not in refused.stderr


def stored(database_url: str) -> int:
    engine = open_engine(database_url)
    with engine.connect() as db:
        count: int = db.execute(text("select count(*) from interactions")).scalar_one()
    engine.dispose()
    return count


_ONE_INTERACTION = """
    insert into interactions (event_id, user_row, item_row, kind, timestamp)
    select 'e', users.row, items.row, 'view', now() from users, items
"""
