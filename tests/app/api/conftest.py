"""The service on real servers, as its lifespan builds it, without a release."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings

URL = "http://localhost"
"""Without a key only this machine may ask."""
PATIENT = {"redis_timeout_seconds": 20.0}
"""Else a quarter of a second in which the machine does something else would be an outage."""


@pytest.fixture
def client(postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(DATABASE_URL=postgres_url, REDIS_URL=redis_url, data_dir=tmp_path, **PATIENT)
    with TestClient(create_app(settings), base_url=URL, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def lasting_client(
    new_database: Callable[[], str], redis_server_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """The same, once for all tests that leave nothing behind: requests that are refused."""
    folder = tmp_path_factory.mktemp("data")
    settings = Settings(DATABASE_URL=new_database(), REDIS_URL=redis_server_url, data_dir=folder, **PATIENT)
    with TestClient(create_app(settings), base_url=URL, raise_server_exceptions=False) as opened:
        yield opened
