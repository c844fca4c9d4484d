"""What /readyz says of live signals that are behind, and what is answered by a server that takes no changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app import resources
from tests.patience import until


def degraded(client: TestClient) -> dict[str, str]:
    found: dict[str, str] = client.get("/readyz").json()["degraded"]
    return found


def test_who_holds_the_live_signals_back_is_named(
    client: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "LIVE_LAG_SECONDS", 1.0)
    with engine.connect() as db:
        db.execute(text("set application_name = 'somebody slow'"))
        db.execute(text("update versions set seq = seq where name = 'keys'"))
        assert client.post("/events", json={"user_id": "u", "item_id": "i", "kind": "like"}).status_code == 202
        until(lambda: "somebody slow" in degraded(client).get("live", ""))
        assert "segue_live_lag_seconds" in client.get("/metrics").text
        db.rollback()
    until(lambda: "live" not in degraded(client))


@contextmanager
def read_only(engine: Engine) -> Iterator[None]:
    """As a replica is; for connections that are made from now on, and all others are ended."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
        name = db.scalar(text("select current_database()"))
        end = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database()"
        try:
            db.execute(text(f'alter database "{name}" set default_transaction_read_only = on'))
            db.execute(text(f"{end} and pid <> pg_backend_pid()"))
            yield
        finally:
            db.execute(text(f'alter database "{name}" reset default_transaction_read_only'))
            db.execute(text(f"{end} and pid <> pg_backend_pid()"))


def test_a_postgres_that_takes_no_changes_is_503_and_reads_go_on(client: TestClient, engine: Engine) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "i", "kind": "like"}
    client.put("/items/i", json={"title": "one"}).raise_for_status()
    with read_only(engine):
        for answer in (
            client.put("/admin/blocks/i", json={}),
            client.put("/items/i", json={}),
            client.delete("/users/u"),
            client.post("/events", json=event),
        ):
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) > 0
        until(lambda: "read-only" in degraded(client).get("events", ""))
        assert client.get("/items/i").json()["title"] == "one"
        assert client.get("/recommend", params={"user_id": "u"}).status_code == 200
    until(lambda: client.post("/events", json=event).status_code == 202)
    until(lambda: "events" not in degraded(client))
