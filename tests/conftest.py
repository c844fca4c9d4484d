"""Real servers for the tests: a database and a Redis database of one's own, empty and migrated.

The servers are those of DATABASE_URL and REDIS_URL; where either is unset, the embedded ones run in a temporary
folder, shared by pytest-xdist's workers, and are gone afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from app.storage.database import migrate, open_engine
from app.storage.embedded import embedded_servers
from app.storage.tables import metadata

# The same examples in every run, however long the machine takes for one.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

REDIS_DATABASES = 16
CLAIM_SECONDS = 3_600


class Servers(NamedTuple):
    """Where Postgres and Redis listen, without a database of one's own yet."""

    database_url: str
    redis_url: str


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The servers of the environment, else embedded ones."""
    database_url, redis_url = os.environ.get("DATABASE_URL"), os.environ.get("REDIS_URL")
    with ExitStack() as stack:
        if not (database_url and redis_url):
            own = stack.enter_context(embedded_servers(_shared_folder(tmp_path_factory) / "servers"))
            leave_the_disk_alone(own.database_url)
            database_url, redis_url = database_url or own.database_url, redis_url or own.redis_url
        yield Servers(database_url, redis_url)


@pytest.fixture(scope="session")
def new_database(servers: Servers) -> Iterator[Callable[[], str]]:
    """Makes an empty, migrated database and answers its url: for a wider scope than one test, or a schema to spoil.

    Not for every test: dropping one takes Postgres a second.
    """
    admin = create_engine(_driver(servers.database_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    names: list[str] = []

    def create() -> str:
        names.append(f"segue_test_{uuid4().hex}")
        _run(admin, f'create database "{names[-1]}"')
        url = _with_database(servers.database_url, names[-1])
        migrate(url)
        return url

    yield create
    for name in names:
        _run(admin, f'drop database "{name}" with (force)')


@pytest.fixture(scope="session")
def recycled_database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def postgres_url(recycled_database: str) -> str:
    """A migrated database as a newborn one, with an id of its own and without anyone else connected.

    Its schema must stay as it is; a test that changes it asks `new_database` for one.
    """
    _empty(recycled_database)
    return recycled_database


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    """An engine on `postgres_url`."""
    opened = open_engine(postgres_url)
    yield opened
    opened.dispose()


@pytest.fixture(scope="session")
def redis_server_url(servers: Servers) -> Iterator[str]:
    """A numbered Redis database that only this process uses; `redis_url` empties it before each test."""
    with _claimed(servers.redis_url) as url:
        yield url


@pytest.fixture(scope="session")
def lasting_redis_url(servers: Servers) -> Iterator[str]:
    """Another one, which no test empties: for a service that runs as long as the tests."""
    with _claimed(servers.redis_url) as url:
        yield url


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """This process's Redis database, emptied."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushdb()
    return redis_server_url


def leave_the_disk_alone(database_url: str) -> None:
    """Lets Postgres wait for no disk: nobody pulls the plug, and a busy disk keeps it silent for seconds. What it
    acknowledges is still with the system by then, and outlives it."""
    engine = create_engine(_driver(database_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    for setting in ("fsync", "full_page_writes"):
        _run(engine, f"alter system set {setting} = off")
    _run(engine, "select pg_reload_conf()")


def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all of xdist's workers, or this process's own."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _driver(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _run(engine: Engine, statement: str) -> None:
    with engine.connect() as db:
        db.execute(text(statement))


def _empty(url: str) -> None:
    engine = create_engine(_driver(url), poolclass=NullPool)
    names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables)
    with engine.begin() as db:
        db.execute(text(_DISCONNECT_OTHERS))
        kinds = db.execute(text("select array_agg(name) from versions")).scalar_one()
        db.execute(text(f"truncate {names} restart identity cascade"))
        db.execute(text("insert into database_identity default values"))
        db.execute(text("insert into versions (name) select unnest(cast(:names as text[]))"), {"names": kinds})


_DISCONNECT_OTHERS = """
    select pg_terminate_backend(pid, 5000) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
"""


def _with_number(url: str, number: int) -> str:
    """The url of a numbered database, for redis:// (in the path) and unix:// (in the query)."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        query = dict(parse_qsl(parts.query)) | {"db": str(number)}
        # Not geturl(): it drops the empty authority of a scheme that it does not know.
        return f"unix://{parts.path}?{urlencode(query)}"
    return parts._replace(path=f"/{number}").geturl()


@contextmanager
def _claimed(server_url: str) -> Iterator[str]:
    with redis.Redis.from_url(_with_number(server_url, 0)) as zero:
        number = _claim(zero)
        url = _with_number(server_url, number)
        with redis.Redis.from_url(url) as claimed:
            claimed.flushdb()
        yield url
        zero.delete(_claim_key(number))


def _claim(zero: redis.Redis) -> int:
    """A database number that no other process has, as database 0 keeps account of them."""
    for number in range(1, REDIS_DATABASES):
        if zero.set(_claim_key(number), os.getpid(), nx=True, ex=CLAIM_SECONDS):
            return number
    raise RuntimeError(f"all {REDIS_DATABASES - 1} databases of the test Redis are taken; end a test run")


def _claim_key(number: int) -> str:
    return f"segue:test:{number}"
