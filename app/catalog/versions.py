"""Versions of what workers hold in memory, so that they know when to load it again.

A version is `epoch:seq`. It is bumped in Postgres in the transaction of the change, copied to Redis after
the commit, reconciled by every worker each second, and compared by inequality only: after a restore or a
lost Redis it may well go backwards.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import Connection, update

from app.storage.tables import versions

Name = Literal["rules", "items", "deletions", "keys", "cache", "experiments"]
"""rules: blocks and promotions; deletions: items and users gone, on which hangs too what writers remember of rows
(`feedback.known_rows`); keys: API keys; cache: the prefix of Redis keys; experiments: definitions and what runs."""


_READ = "SELECT name, epoch || ':' || seq FROM versions"


def bump(db: Connection, name: Name) -> str:
    """The next version of `name`; it becomes visible with the caller's transaction."""
    statement = (
        update(versions)
        .where(versions.c.name == name)
        .values(seq=versions.c.seq + 1)
        .returning(versions.c.epoch, versions.c.seq)
    )
    row = db.execute(statement).one()
    return f"{row.epoch}:{row.seq}"


def read(db: Connection) -> dict[str, str]:
    """Every version as Postgres has it."""
    # Every worker asks several times a second: to put the statement together takes longer than the answer.
    return dict(db.exec_driver_sql(_READ).all())
