"""The disk is full. What can't be written is refused, with its reason, and nothing of it stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg2
import pytest

from app.errors import Unavailable
from app.settings import Settings
from app.storage.database import open_engine
from app.storage.release_files import current_id, point_to
from app.training import job
from models.training import fit_recipes
from tests.patience import until
from tests.service.conftest import Service, Stores
from tests.service.outages import Island, island, small_disk, small_files
from tests.service.test_recommend import ids, like, recommend, send, someone


@pytest.fixture(scope="module")
def place(stores: Stores) -> Iterator[Island]:
    """On a disk with some 100 MB left."""
    with (
        tempfile.TemporaryDirectory(prefix="segue-disk-") as folder,
        small_disk(Path(folder), "200m") as disk,
        island(stores, disk) as made,
    ):
        yield made


def fill(disk: Path) -> Path:
    """Writes until nothing more can be written; returns the file to delete."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def degraded(service: Service) -> dict[str, str]:
    found: dict[str, str] = service.client.get("/readyz").json()["degraded"]
    return found


def test_on_a_full_disk_events_are_refused_whole_and_reads_go_on(place: Island) -> None:
    fan, films = someone(), ids(recommend(place.a, someone(), limit=6))
    send(place.a, *(like(fan, film) for film in films))
    with closing(psycopg2.connect(place.environment["DATABASE_URL"])) as db, db.cursor() as cursor:
        # With a new segment of its log on the disk: a Postgres that can't begin the next one ends.
        cursor.execute("select pg_switch_wal()")
        cursor.execute("checkpoint")
    filler = fill(place.data_dir)
    try:
        # Until what Postgres still had room for is used up.
        for _ in range(200):
            events = [like(someone(), films[0]) | {"event_id": uuid4().hex} for _ in range(1000)]
            answer = place.a.client.post("/events", json=events)
            if answer.status_code != 202:
                break
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert "the same ids" in answer.json()["detail"]
        until(lambda: "No space left" in degraded(place.a).get("events", ""))
        for service in (place.a, place.b):
            assert recommend(service, fan)["route"] == "established"
            assert recommend(service, someone())["route"] == "new"
            assert not set(films) & set(ids(recommend(service, fan, limit=400)))
    finally:
        filler.unlink()
    until(lambda: place.a.client.post("/events", json=like(fan, films[0])).status_code == 202)
    again = place.a.client.post("/events", json=events)
    assert again.json() | {"watermark": ""} == {"accepted": 1000, "duplicates": 0, "watermark": ""}
    for service in (place.a, place.b):
        until(lambda service=service: degraded(service) == {})
        assert recommend(service, events[0]["user_id"])["route"] == "few"


@pytest.fixture
def settings(stores: Stores, tmp_path: Path) -> Settings:
    return stores.settings.model_copy(update={"data_dir": tmp_path})


def test_a_training_on_a_full_disk_leaves_nothing_and_names_the_reason(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One recommender is enough to be written, and is fitted in no time.
    monkeypatch.setattr(job, "fit_recipes", partial(fit_recipes, names=["popularity"]))
    engine = open_engine(str(settings.database_url))
    with small_files(2_000), pytest.raises(Unavailable, match=r"can't be written.*(File too large|is the disk full)"):
        job.train(engine, settings, progress=lambda *_: None, evaluate=False)
    engine.dispose()
    assert [path for path in settings.releases_dir.rglob("*")] == []


def test_a_pointer_that_can_not_be_written_stays_as_it_was(tmp_path: Path) -> None:
    point_to(tmp_path, "good")
    with small_files(2), pytest.raises(Unavailable, match="can't be written"):
        point_to(tmp_path, "better")
    assert current_id(tmp_path) == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["current"]
