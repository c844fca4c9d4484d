"""A warm /recommend asks Postgres nothing: neither its own task nor a thread that it hands work to; and Redis once.

Also in experiments, of which one is restricted to a route: that the user is in it is in the past that Redis has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, delete, event, text
from starlette.types import ASGIApp, Receive, Scope, Send

from app.catalog import versions
from app.feedback import cache_version
from app.main import create_app
from app.storage import tables
from app.storage.database import open_engine
from app.storage.redis_multiplexer import Answer, Command, RedisMultiplexer
from tests.app.experiments.examples import add_experiment
from tests.service.conftest import KEYS, Stores

ROUNDS = 6

_request: ContextVar[str | None] = ContextVar("request", default=None)
"""Whose statements are counted. Tasks and threads that a request starts inherit it."""


class Asked(NamedTuple):
    """What requests have asked Postgres, whichever engine they took; and Redis, but for pinning slates behind them."""

    statements: list[str]
    reads: list[tuple[Command, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    found = Asked([], [])
    ask = RedisMultiplexer.ask

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if _request.get() is not None:
            found.statements.append(statement)

    async def noted(self: RedisMultiplexer, *commands: Command) -> Answer:
        if _request.get() is not None and commands[0][0] != "SET":
            found.reads.append(commands)
        return await ask(self, *commands)

    monkeypatch.setattr(RedisMultiplexer, "ask", noted)
    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


SURFACE = "statements"


@pytest.fixture
def experiments(stores: Stores) -> Iterator[set[str]]:
    """Two that run, one for a route alone, on a surface that no other test asks for."""
    keys = {"statements-all", "statements-established"}
    engine = open_engine(stores.environment["DATABASE_URL"])
    with engine.begin() as db:
        add_experiment(db, "statements-all", surface=SURFACE)
        add_experiment(db, "statements-established", surface=SURFACE, route="established")
        versions.bump(db, "experiments")
    yield keys
    with engine.begin() as db:
        db.execute(delete(tables.experiments).where(tables.experiments.c.key.in_(keys)))
        versions.bump(db, "experiments")
    engine.dispose()


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


def test_a_warm_recommendation_asks_postgres_nothing_and_redis_once(
    stores: Stores, established: list[str], asked: Asked, experiments: set[str], monkeypatch: pytest.MonkeyPatch
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
            assert asked.statements, "a user whom Redis does not know is looked up: else nothing is counted here"
            for user in established:
                deadline = time.monotonic() + 60
                # The first exposure changes the past, which the next request reads again.
                while asked.statements:
                    assert time.monotonic() < deadline, "no request ever did without Postgres"
                    asked.statements.clear()
                    await ask(client, user, surface=SURFACE)
                asked.statements.append("of the next user")
            for surface, expected in (("feed", set()), (SURFACE, experiments)):
                asked.statements.clear()
                asked.reads.clear()
                for user in established * ROUNDS:
                    page = await ask(client, user, surface=surface)
                    assert page["route"] == "established"
                    assert {each["key"] for each in page["experiments"]} >= expected
                    await ask(client, user, surface=surface, cursor=page["next_cursor"])
                assert asked.statements == []
                assert len(asked.reads) == 2 * ROUNDS * len(established)
                assert {len(commands) for commands in asked.reads} == {2}

    asyncio.run(scenario())
