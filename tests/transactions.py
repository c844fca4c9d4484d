"""Waiting for the transactions of others: an open one, in whichever database of the server, keeps what is committed
after its beginning from being counted."""

from __future__ import annotations

from sqlalchemy import Engine, text

from tests.patience import until


def await_all_before(engine: Engine) -> None:
    """Until every transaction that has begun by now is over."""
    begun = _asked(engine, "xmax")
    until(lambda: _asked(engine, "xmin") >= begun)


def _asked(engine: Engine, mark: str) -> int:
    with engine.connect() as db:
        statement = text(f"select pg_snapshot_{mark}(pg_current_snapshot())::text::bigint")
        found: int = db.execute(statement).scalar_one()
        return found
