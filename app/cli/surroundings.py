"""What a command needs around it: settings, servers, a migrated database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.errors import SegueError
from app.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


@contextmanager
def opened() -> Iterator[tuple[Settings, Engine]]:
    """Settings and a migrated database; starts the embedded servers where none are configured.

    Child processes find the servers in the environment.
    """
    from app.storage.database import migrate as migrate_database
    from app.storage.database import open_engine
    from app.telemetry import configure_logging

    settings = Settings()
    configure_logging(settings.log_level)
    with servers(settings) as (database_url, redis_url):
        os.environ.update(DATABASE_URL=database_url, REDIS_URL=redis_url)
        os.environ["SEGUE_DATA_DIR"] = str(settings.data_dir.resolve())
        settings = Settings()
        settings.releases_dir.mkdir(parents=True, exist_ok=True)
        migrate_database(database_url)
        engine = open_engine(database_url, statement_timeout_seconds=600)
        try:
            yield settings, engine
        finally:
            engine.dispose()


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
