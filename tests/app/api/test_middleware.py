"""What surrounds every request holds for failures too."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from app.api import problems
from app.api.middleware import Surroundings


def answer(app: FastAPI) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/", headers={"X-Request-ID": "mine"})

    return asyncio.run(ask())


def test_a_bug_is_a_problem_with_the_callers_request_id() -> None:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(Surroundings, max_body_bytes=1024)

    @app.get("/")
    def broken() -> None:
        raise ZeroDivisionError("a secret of the inside")

    failed = answer(app)
    assert (failed.status_code, failed.headers["x-request-id"]) == (500, "mine")
    assert failed.headers["content-type"] == "application/problem+json"
    assert "secret" not in failed.text


def test_a_failure_after_the_first_byte_cannot_become_another_answer() -> None:
    async def begins_and_breaks(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def ask() -> list[str]:
        sent: list[str] = []

        async def send(message: dict) -> None:
            sent.append(message["type"])

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        with pytest.raises(ZeroDivisionError):
            await Surroundings(begins_and_breaks, max_body_bytes=1024)(scope, None, send)
        return sent

    assert asyncio.run(ask()) == ["http.response.start"]


def test_a_request_that_is_given_up_when_the_service_stops_is_told_to_retry() -> None:
    async def hangs(_: Scope, __: Receive, ___: Send) -> None:
        await asyncio.sleep(3600)

    async def ask() -> list[dict]:
        sent: list[dict] = []

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/events", "headers": []}
        asked = asyncio.create_task(Surroundings(hangs, max_body_bytes=1024)(scope, None, send))
        await asyncio.sleep(0)
        asked.cancel()
        await asked
        return sent

    start, body = asyncio.run(ask())
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert b"the same ids" in body["body"]
