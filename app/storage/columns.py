"""What all tables are declared with: their common metadata, and columns of Postgres that SQLAlchemy has no name for."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, MetaData, text
from sqlalchemy.types import UserDefinedType

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class Xid8(UserDefinedType[int]):
    """Postgres' 64-bit transaction id: what changed since a snapshot is at or above its xmin."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


def instant(name: str, **options: object) -> Column[object]:
    """A time, with its zone."""
    return Column(name, DateTime(timezone=True), **options)  # type: ignore[arg-type]


CURRENT_XID = text("pg_current_xact_id()")
