"""A direct route answers as FastAPI's own route does, and refuses at start-up what it would not obey."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated

import httpx
import orjson
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.middleware.cors import CORSMiddleware

from app import telemetry
from app.api import problems
from app.api.bodies import RawBody
from app.api.dependencies import Caller, ResourcesDep, require
from app.api.direct_route import DirectBodyRoute, DirectRoute, Shortcut, install_shortcut
from app.api.limits import Limits
from app.api.middleware import Surroundings
from app.main import create_app
from app.settings import Settings
from app.storage.keys import ApiKey, KeyRing, digest_of

KEYS = KeyRing(
    (
        ApiKey("reader", digest_of("may-read"), frozenset({"read"})),
        ApiKey("writer", digest_of("may-write"), frozenset({"write"})),
    ),
    is_open=False,
)


class Question(BaseModel):
    name: str = Field(min_length=1)
    limit: int = Field(default=10, le=100)
    tag: list[str] = Field(default=[], max_length=2)
    deep: bool = False


async def answer(resources: ResourcesDep, caller: Caller, query: Annotated[Question, Query()]) -> Response:
    return Response(orjson.dumps({"caller": caller.name, "query": query.model_dump()}))


def app_of(route: type[APIRoute], handler: Callable[..., object] = answer, *, with_shortcut: bool = False) -> FastAPI:
    app = FastAPI()
    app.state.resources = SimpleNamespace(keys=KEYS)
    app.state.limits = Limits(0)
    problems.install(app)
    router = APIRouter(prefix="/question", dependencies=[Depends(require("read"))], route_class=route)
    router.add_api_route("", handler, methods=["GET"])
    app.include_router(router)
    if with_shortcut:
        install_shortcut(app, router.routes)
    return app


def shortened() -> FastAPI:
    return app_of(DirectRoute, with_shortcut=True)


def ask(app: FastAPI, query: str, key: str | None) -> tuple[int, bytes]:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get(f"/question?{query}", headers={} if key is None else {"X-API-Key": key})

    answered = asyncio.run(once())
    return answered.status_code, answered.content


@pytest.mark.parametrize(
    "query",
    [
        "name=ann",
        "name=ann&limit=7&tag=a&tag=b&deep=true",
        "name=ann&name=bob&limit=1&limit=2",
        "name=ann&unknown=1&unknown=2",
        "name=&limit=",
        "limit=1000&tag=a&tag=b&tag=c&deep=perhaps",
        "name=%C3%A4%00%ff+b&tag=",
        "",
    ],
)
def test_it_reads_a_query_as_fastapi_does(query: str) -> None:
    usual = ask(app_of(APIRoute), query, "may-read")
    assert ask(app_of(DirectRoute), query, "may-read") == usual
    assert ask(shortened(), query, "may-read") == usual


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("wrong", 401), ("may-write", 403), ("may-read", 200)])
def test_it_lets_in_whom_fastapi_lets_in(key: str | None, status: int) -> None:
    direct, usual = (ask(app_of(route), "name=ann", key) for route in (DirectRoute, APIRoute))
    assert direct == usual == ask(shortened(), "name=ann", key)
    assert direct[0] == status


def test_the_service_takes_the_shortcut_before_all_else() -> None:
    assert isinstance(create_app(Settings()).middleware_stack, Shortcut)


def test_it_is_documented_as_any_other_route() -> None:
    assert app_of(DirectRoute).openapi() == app_of(APIRoute).openapi()


async def echo(_: ResourcesDep, raw: RawBody) -> Response:
    if raw == b"[]":
        raise ZeroDivisionError("a secret of the inside")
    return Response(raw, 202)


def posted(route: type[APIRoute], body: bytes, *, key: str = "may-write") -> httpx.Response:
    """As the service stands around it: CORS within what surrounds every request, and for a direct route a shortcut past
    all else."""
    app = FastAPI()
    app.state.resources = SimpleNamespace(keys=KEYS)
    app.state.limits = Limits(0)
    problems.install(app)
    router = APIRouter(dependencies=[Depends(require("write"))], route_class=route)
    router.add_api_route("/echo", echo, methods=["POST"])
    app.include_router(router)
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"], expose_headers=["X-Request-ID"])
    app.add_middleware(Surroundings, max_body_bytes=1024)
    if route is DirectBodyRoute:
        install_shortcut(app, router.routes)
    headers = {"X-API-Key": key, "X-Request-ID": "mine", "Origin": "https://shop.example"}

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/echo", content=body, headers={**headers, "Content-Type": "application/json"})

    return asyncio.run(once())


def counted(status: int) -> float:
    return telemetry.REQUESTS.labels("POST", "/echo", status)._value.get()


@pytest.mark.parametrize(
    ("body", "key", "status"),
    [
        (b'{"a": 1}', "may-write", 202),
        (b"[]", "may-write", 500),
        (b"{}", "may-read", 403),
        (b"{}", "wrong", 401),
        (b" " * 1025, "may-write", 413),
    ],
)
def test_a_shortcut_for_a_body_answers_and_is_counted_as_fastapi_is(body: bytes, key: str, status: int) -> None:
    usual, before = posted(APIRoute, body, key=key), counted(status)
    short = posted(DirectBodyRoute, body, key=key)
    assert (short.status_code, short.content, short.headers) == (status, usual.content, usual.headers)
    assert short.headers["x-request-id"] == "mine"
    if status >= 400:
        assert short.headers["content-type"] == "application/problem+json"
        assert "secret" not in short.text
    if status not in {413, 500}:  # which are answered around CORS
        assert short.headers["access-control-allow-origin"] == "https://shop.example"
    if status != 413:  # for which no route is looked up
        assert counted(status) == before + 1


async def with_one_more(
    resources: ResourcesDep, caller: Caller, query: Annotated[Question, Query()], q: str
) -> Response:
    raise NotImplementedError


async def without_a_caller(resources: ResourcesDep, query: Annotated[Question, Query()]) -> Response:
    raise NotImplementedError


def unheeded() -> None:
    raise NotImplementedError


@pytest.mark.parametrize("handler", [with_one_more, without_a_caller])
def test_a_handler_that_asks_for_something_else_is_refused(handler: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="/x: a DirectRoute's handler takes"):
        APIRouter(route_class=DirectRoute).add_api_route("/x", handler, methods=["GET"])


def test_a_dependency_that_it_would_not_obey_is_refused() -> None:
    with pytest.raises(TypeError, match="/x: a DirectRoute's handler takes"):
        APIRouter(route_class=DirectRoute, dependencies=[Depends(unheeded)]).add_api_route("/x", answer)


async def agent_of(
    resources: ResourcesDep, caller: Caller, query: Annotated[Question, Query()], request: Request
) -> Response:
    return Response(orjson.dumps([query.name, request.headers["user-agent"]]))


def test_a_handler_that_asks_for_the_request_last_gets_it() -> None:
    direct, usual = app_of(DirectRoute, agent_of), app_of(APIRoute, agent_of)
    assert ask(direct, "name=ann", "may-read") == ask(usual, "name=ann", "may-read")
    assert b"ann" in ask(direct, "name=ann", "may-read")[1]
