"""A warm /recommend asks Postgres nothing: neither its own task nor a thread that it hands work to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, event, text
from starlette.types import ASGIApp, Receive, Scope, Send

from app.feedback import cache_version
from app.main import create_app
from app.storage.database import open_engine
from tests.service.conftest import KEYS, Stores

ROUNDS = 6

_request: ContextVar[str | None] = ContextVar("request", default=None)
"""Whose statements are counted. Tasks and threads that a request starts inherit it."""


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What requests have asked Postgres, whichever engine they took."""
    found: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if _request.get() is not None:
            found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


def marked(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        _request.set(scope.get("path"))
        await app(scope, receive, send)

    return answer


@pytest.fixture
def established(stores: Stores) -> list[str]:
    engine = open_engine(stores.environment["DATABASE_URL"])
    with engine.connect() as db:
        users = "SELECT user_id FROM users JOIN interactions ON row = user_row GROUP BY 1 HAVING count(*) >= 20 LIMIT 5"
        found = list(db.execute(text(users)).scalars())
    engine.dispose()
    return found


def test_a_warm_recommendation_asks_postgres_nothing(
    stores: Stores, established: list[str], statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a machine that holds everything up for a second, the past is rightly read from Postgres.
    monkeypatch.setattr(cache_version, "TRUST_SECONDS", 600)
    settings = stores.settings.model_copy(update={"redis_timeout_seconds": 20, "read_key": SecretStr(KEYS["read"])})

    async def ask(client: httpx.AsyncClient, user: str, **more: str) -> dict[str, Any]:
        answer = await client.get("/recommend", params={"user_id": user, **more})
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page

    async def scenario() -> None:
        app = create_app(settings)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(marked(app)),
                base_url="http://127.0.0.1",
                headers={"X-API-Key": KEYS["read"]},
            ) as client,
        ):
            await ask(client, f"stranger-{uuid4().hex}")
            assert statements, "a user whom Redis does not know is looked up: else nothing is counted here"
            for user in established:
                await ask(client, user)
            statements.clear()
            for user in established * ROUNDS:
                page = await ask(client, user)
                assert page["route"] == "established"
                await ask(client, user, cursor=page["next_cursor"])
            assert statements == []

    asyncio.run(scenario())
