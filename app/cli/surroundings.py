"""What a command needs around it: settings, servers, a migrated database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.errors import SegueError
from app.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

T = TypeVar("T")
POSTGRES_SECONDS = 60.0
"""So long a service that starts waits for a Postgres that is away, or starts too."""
HANDED_ON = ("DATABASE_URL", "REDIS_URL", "SEGUE_DATA_DIR")
"""What child processes find in the environment."""


@contextmanager
def opened(data_dir: Path | None = None, *, patience_seconds: float = 0.0) -> Iterator[tuple[Settings, Engine]]:
    """Settings and a migrated database; starts the embedded servers where none are configured.

    Child processes find the servers in the environment, within the block.
    data_dir: instead of the configured one
    patience_seconds: to wait for a Postgres that is away, which is an error then
    """
    from app.storage.database import migrate as migrate_database
    from app.storage.database import open_engine
    from app.telemetry import configure_logging

    settings = Settings() if data_dir is None else Settings().model_copy(update={"data_dir": data_dir})
    configure_logging(settings.log_level)
    with servers(settings) as (database_url, redis_url), _handed_on(database_url, redis_url, settings.data_dir):
        settings = Settings()
        settings.releases_dir.mkdir(parents=True, exist_ok=True)
        patiently(lambda: migrate_database(database_url), patience_seconds)
        engine = open_engine(database_url, statement_timeout_seconds=600)
        try:
            yield settings, engine
        finally:
            engine.dispose()


def patiently(ask: Callable[[], T], seconds: float) -> T:
    """What `ask` gives, see `outlasting`. Raises SegueError where Postgres stays away for so long."""
    from app.storage.database import cause_of
    from app.storage.outlasting import OUTAGE_ERRORS, outlasting

    try:
        return outlasting(ask, seconds)
    except OUTAGE_ERRORS as error:
        raise SegueError(f"DATABASE_URL: Postgres can't be used: {cause_of(error)}") from error


@contextmanager
def _handed_on(database_url: str, redis_url: str, data_dir: Path) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in HANDED_ON}
    os.environ.update(zip(HANDED_ON, (database_url, redis_url, str(data_dir.resolve())), strict=True))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def servers(settings: Settings) -> Iterator[tuple[str, str]]:
    """The addresses of Postgres and Redis: those configured, or the embedded ones for as long as the block lasts."""
    if settings.database_url and settings.redis_url:
        yield settings.database_url, settings.redis_url
        return
    from app.storage.embedded import EmbeddedServersError, embedded_servers

    try:
        with embedded_servers(settings.data_dir) as servers:
            yield settings.database_url or servers.database_url, settings.redis_url or servers.redis_url
    except EmbeddedServersError as error:
        raise SegueError(str(error)) from error
