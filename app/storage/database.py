"""One SQLAlchemy engine on psycopg2; callers open `engine.begin()` where their transaction starts."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import psycopg2
from sqlalchemy import Connection, Engine, create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.storage import tables

POSTGRES_ERRORS = (SQLAlchemyError, psycopg2.OperationalError, psycopg2.InterfaceError)
"""What a failing Postgres is noticed by. SQLAlchemy lets psycopg2's own errors pass where a connection that was
switched to autocommit is switched back."""

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def cause_of(error: Exception) -> str:
    """What Postgres said, or its client, in a line: SQLAlchemy repeats the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def open_engine(url: str, *, pool: int = 8, statement_timeout_seconds: float = 10) -> Engine:
    """An engine for `postgresql://…`; it connects on first use. Times are UTC, statements end in time."""
    # Compiling a plan (jit) costs more than any statement of ours runs for.
    options = f"-c timezone=UTC -c jit=off -c statement_timeout={int(statement_timeout_seconds * 1000)}"
    return create_engine(
        # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3.
        make_url(url).set(drivername="postgresql+psycopg2"),
        pool_size=pool,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        connect_args={
            "options": options,
            "connect_timeout": 3,
            "application_name": "segue",
            # A statement_timeout ends nothing where the server, or the way to it, is gone without a word.
            "tcp_user_timeout": 15_000,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
    )


def migrate(url: str, revision: str = "head") -> None:
    """Brings the schema to `revision`, creating it where there is none."""
    # Workers, which don't migrate, need not hold 8 MiB of it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    command.upgrade(config, revision)


def database_id(db: Connection) -> UUID:
    """The id this database was born with; a release made from another database is refused by it."""
    identity: UUID = db.execute(select(tables.database_identity.c.database_id)).scalar_one()
    return identity
