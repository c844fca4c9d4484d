"""Keys are replaced and revoked while processes run, and each of them hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from app.storage import keys
from app.storage.database import open_engine
from tests.patience import until
from tests.service.conftest import Service, Stores, client_of


@pytest.fixture
def database(stores: Stores) -> Iterator[Engine]:
    engine = open_engine(stores.environment["DATABASE_URL"])
    yield engine
    engine.dispose()


def status(service: Service, key: str) -> int:
    with client_of(service.url, key) as client:
        return client.get("/items", params={"limit": 1}).status_code


def becomes(services: tuple[Service, Service], key: str, expected: int) -> None:
    until(lambda: {status(service, key) for service in services} == {expected})


def test_a_rotated_key_opens_until_its_grace_is_over_and_the_new_one_at_once(
    both: tuple[Service, Service], database: Engine
) -> None:
    with database.begin() as db:
        old = keys.create(db, actor="tests", name="front-end", scopes=["read"])
    becomes(both, old, 200)
    with database.begin() as db:
        new = keys.rotate(db, actor="tests", name="front-end", grace=timedelta(hours=1)).key
    becomes(both, new, 200)
    assert [status(service, old) for service in both] == [200, 200]
    assert both[0].client.get("/admin/audit", params={"limit": 1}).json()["items"][0]["action"] == "key.rotate"
    with database.begin() as db:
        newest = keys.rotate(db, actor="tests", name="front-end", grace=timedelta(seconds=2)).key
    becomes(both, old, 401)
    becomes(both, new, 401)
    becomes(both, newest, 200)
    with database.begin() as db:
        keys.revoke(db, actor="tests", name="front-end")
    becomes(both, newest, 401)
