"""A service with servers of its own is backed up while people use it, and goes on elsewhere from that moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.app.storage.conftest import data_dir  # noqa: F401 - a fixture
from tests.service.conftest import Service, running

ITEMS = [f"i{n}" for n in range(20)]


@pytest.fixture(autouse=True)
def no_servers_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def segue(folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        env={**os.environ, "SEGUE_DATA_DIR": str(folder), "COLUMNS": "500"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def did(user: str, item: str, kind: str = "view") -> dict[str, Any]:
    return {"event_id": uuid4().hex, "user_id": user, "item_id": item, "kind": kind}


def send(service: Service, *events: dict[str, Any]) -> dict[str, Any]:
    answer = service.client.post("/events", json=list(events))
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids_of(service: Service, user: str) -> set[str]:
    """All of them, however fast the machine writes."""
    found: set[str] = set()
    asked: dict[str, Any] = {"limit": 1000}
    while (answer := service.client.get(f"/users/{user}/interactions", params=asked)).status_code == 200:
        found |= {each["event_id"] for each in answer.json()["items"]}
        if (cursor := answer.json()["next_cursor"]) is None:
            break
        asked["cursor"] = cursor
    return found


@contextmanager
def writing(service: Service, user: str) -> Iterator[Callable[[], set[str]]]:
    """The user does one thing after the other; what it answers are the events acknowledged by then."""
    acknowledged: list[str] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            event = did(user, ITEMS[len(acknowledged) % 5])
            send(service, event)
            acknowledged.append(event["event_id"])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield lambda: set(acknowledged)
    finally:
        over.set()
        thread.join()


def test_all_that_was_acknowledged_before_it_is_there_and_who_was_erased_stays_so(
    data_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    first, second = data_dir / "first", data_dir / "second"
    of_gone, of_late = did("gone", "i1", "like"), did("late", "i2", "like")
    with running({"SEGUE_DATA_DIR": str(first), "SEGUE_LIVE_CHECKPOINT_SECONDS": "0.5"}) as service:
        send(service, *(did("others", item) for item in ITEMS), of_gone, of_late, did("ann", "i0", "like"))
        assert service.client.delete("/users/gone").status_code == 200
        with writing(service, "ann") as acknowledged:
            before = acknowledged()
            segue(first, "backup", tmp_path / "backup")
            assert acknowledged() > before, "nobody wrote meanwhile"
        assert service.client.delete("/users/late").status_code == 200
        service.client.put("/users/too-late", json={})
        everything = ids_of(service, "ann")
        erased = segue(first, "erasures", "list")
    assert len(erased.splitlines()) == 2
    (tmp_path / "erased").write_text(erased)

    assert "erased since are back" in segue(second, "restore", tmp_path / "backup")
    with running({"SEGUE_DATA_DIR": str(second), "SEGUE_LIVE_CHECKPOINT_SECONDS": "0.5"}) as service:
        stored = ids_of(service, "ann")
        assert before <= stored < everything
        assert service.client.get("/users/too-late").status_code == 404
        page = service.client.get("/recommend", params={"user_id": "ann", "limit": 20}).json()
        assert page["items"]
        assert not {each["item_id"] for each in page["items"]} & set(ITEMS[:5])
        # Erased before the backup: for good. After it: back, until somebody who kept the list says so.
        assert send(service, of_gone)["accepted"] == 1
        assert ids_of(service, "gone") == set()
        assert ids_of(service, "late") == {of_late["event_id"]}
        segue(second, "erasures", "apply", tmp_path / "erased")
        assert ids_of(service, "late") == set()
        assert send(service, of_late)["accepted"] == 1
        assert ids_of(service, "late") == set()
        # And life goes on: the same ids are duplicates still, new events count.
        assert send(service, did("bob", "i3"))["accepted"] == 1
        deadline = time.monotonic() + 180
        while "equal to a recount" not in (said := segue(second, "live", "check")):
            assert time.monotonic() < deadline, said
