"""A release that is damaged, half there or gone. The last good one serves, and it is said which is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.serving.model_host import ModelHost
from app.storage.database import database_id, open_engine
from tests.patience import until
from tests.service.conftest import Service, Stores, activate, copy_release, running
from tests.service.outages import up
from tests.service.test_recommend import ids, recommend, someone

Damage = Callable[[Path], None]


class Place:
    """A releases folder of its own, over the database that the other tests of the service use."""

    def __init__(self, stores: Stores, data_dir: Path) -> None:
        self.folder = data_dir / "releases"
        self.environment = stores.environment | {"SEGUE_DATA_DIR": str(data_dir)}
        self._settings = stores.settings.model_copy(update={"data_dir": data_dir})
        self._original = stores.settings.releases_dir / stores.release_id
        self.good = self.activated()

    def activated(self) -> str:
        """A whole release, made current."""
        release_id = self.copied()
        activate(self._settings, release_id)
        return release_id

    def copied(self) -> str:
        return copy_release(self._settings, self._original)

    def point_to(self, content: bytes) -> None:
        (self.folder / "current").write_bytes(content)


def flip_a_bit(release: Path) -> None:
    array = release / "content.npy"
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(content)


def cut_short(release: Path) -> None:
    array = release / "content.npy"
    array.write_bytes(array.read_bytes()[:-100])


def lose_the_manifest(release: Path) -> None:
    (release / "manifest.json").unlink()


def lose_an_array(release: Path) -> None:
    (release / "content.npy").unlink()


def lose_everything(release: Path) -> None:
    shutil.rmtree(release)


DAMAGES = [flip_a_bit, cut_short, lose_the_manifest, lose_an_array, lose_everything]


@pytest.fixture(scope="module")
def place(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(stores, tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def serving(place: Place) -> Iterator[Service]:
    with running(place.environment) as service:
        yield service


@pytest.fixture
def service(serving: Service, place: Place) -> Iterator[Service]:
    """It serves `place.good`, before and after the test."""
    yield serving
    place.point_to(place.good.encode())
    until(lambda: degraded(serving) == {} and recommend(serving, someone())["release"] == place.good)
    assert up(serving, "release") == 1


def degraded(service: Service) -> dict[str, str]:
    found: dict[str, str] = service.client.get("/readyz").json()["degraded"]
    return found


def assert_it_serves_and_obeys(service: Service, release_id: str | None) -> None:
    """What is wrong with a release must not keep rules from reaching the answers."""
    assert up(service, "release") == 0
    page = recommend(service, someone())
    assert page["release"] == release_id
    doomed = ids(page)[0]
    service.client.put(f"/admin/blocks/{doomed}", json={}).raise_for_status()
    assert doomed not in ids(recommend(service, someone(), limit=1000))
    service.client.delete(f"/admin/blocks/{doomed}").raise_for_status()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_release_leaves_the_last_good_one_in_place(service: Service, place: Place, damage: Damage) -> None:
    bad = place.copied()
    damage(place.folder / bad)
    place.point_to(bad.encode())
    until(lambda: "release" in degraded(service))
    assert bad in degraded(service)["release"]
    assert_it_serves_and_obeys(service, place.good)


def test_a_release_that_was_repaired_is_served_without_a_restart(service: Service, place: Place) -> None:
    bad = place.copied()
    flip_a_bit(place.folder / bad)
    place.point_to(bad.encode())
    until(lambda: "release" in degraded(service))
    flip_a_bit(place.folder / bad)
    until(lambda: degraded(service) == {} and recommend(service, someone())["release"] == bad)


@pytest.mark.parametrize("content", [b"", b"\xff\x00\xfe" * 1000, b"../../etc", b"2020-01-01T00-00-00Z-beef", None])
def test_a_pointer_that_leads_nowhere_leaves_the_last_good_release_in_place(
    service: Service, place: Place, content: bytes | None
) -> None:
    if content is None:
        (place.folder / "current").unlink()
    else:
        place.point_to(content)
    until(lambda: "release" in degraded(service))
    assert_it_serves_and_obeys(service, place.good)
    activated = service.client.post(f"/admin/releases/{place.good}/activate")
    assert activated.status_code == 200, "the way to repair it must stay open"
    until(lambda: degraded(service) == {})


def test_a_release_that_is_deleted_while_it_is_served_goes_on_and_is_said(service: Service, place: Place) -> None:
    doomed = place.copied()
    place.point_to(doomed.encode())
    until(lambda: recommend(service, someone())["release"] == doomed)
    shutil.rmtree(place.folder / doomed)
    until(lambda: "deleted" in degraded(service).get("release", ""))
    for category in ("Drama", "Comedy"):
        assert ids(recommend(service, someone(), category=category))
    assert_it_serves_and_obeys(service, doomed)


def test_a_release_that_is_changed_while_it_is_served_is_said(service: Service, place: Place) -> None:
    changed = place.copied()
    place.point_to(changed.encode())
    until(lambda: recommend(service, someone())["release"] == changed)
    flip_a_bit(place.folder / changed)
    until(lambda: "changed" in degraded(service).get("release", ""))


def test_a_start_with_a_damaged_release_serves_the_one_before(stores: Stores, tmp_path: Path) -> None:
    place = Place(stores, tmp_path)
    newest_good = place.activated()
    flip_a_bit(place.folder / place.activated())
    lose_the_manifest(place.folder / place.activated())
    with running(place.environment) as service:
        page = recommend(service, someone())
        assert (page["route"], page["release"]) == ("new", newest_good)
        assert newest_good in degraded(service)["release"]
        assert_it_serves_and_obeys(service, newest_good)


def test_which_release_serves_instead_is_said_for_as_long_as_it_does(stores: Stores, tmp_path: Path) -> None:
    place = Place(stores, tmp_path)
    lose_the_manifest(place.folder / place.activated())
    engine = open_engine(stores.environment["DATABASE_URL"])
    with engine.connect() as db:
        host = ModelHost(place.folder, database_id(db))
    engine.dispose()
    served = host.newer_than(None, lambda: [place.good])
    assert served is not None
    for _ in range(2):
        assert f"; release {place.good} is served instead" in (host.failure or "")
        assert host.newer_than(served.release_id) is None


def test_a_start_without_any_release_that_loads_answers_from_live_counts(stores: Stores, tmp_path: Path) -> None:
    place = Place(stores, tmp_path)
    cut_short(place.folder / place.good)
    with running(place.environment) as service:
        page = recommend(service, someone())
        assert (page["route"], page["release"], len(page["items"])) == ("degraded", None, 10)
        assert place.good in degraded(service)["release"]
        assert_it_serves_and_obeys(service, None)
