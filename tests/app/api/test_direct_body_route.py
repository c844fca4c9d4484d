"""A route that takes a body without FastAPI's search for it answers as FastAPI's own does."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.routing import APIRoute

from app.api import problems
from app.api.bodies import RawBody
from app.api.dependencies import ResourcesDep, require
from app.api.direct_route import DirectBodyRoute
from app.api.limits import Limits
from app.storage.keys import ApiKey, KeyRing, digest_of

KEYS = KeyRing(
    (
        ApiKey("reader", digest_of("may-read"), frozenset({"read"})),
        ApiKey("writer", digest_of("may-write"), frozenset({"write"})),
    ),
    is_open=False,
)


async def echo(_: ResourcesDep, raw: RawBody) -> Response:
    return Response(raw, 202)


def app_of(route: type[APIRoute]) -> FastAPI:
    app = FastAPI()
    app.state.resources = SimpleNamespace(keys=KEYS)
    app.state.limits = Limits(0)
    problems.install(app)
    router = APIRouter(dependencies=[Depends(require("write"))], route_class=route)
    router.add_api_route("/echo", echo, methods=["POST"])
    app.include_router(router)
    return app


def send(app: FastAPI, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/echo", content=body, headers=headers)

    answered = asyncio.run(once())
    return answered.status_code, answered.content


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "wrong", "Content-Type": "application/json"}, 401),
        ({"X-API-Key": "may-read", "Content-Type": "text/plain"}, 403),
        ({"X-API-Key": "may-write", "Content-Type": "text/plain"}, 422),
        ({"X-API-Key": "may-write"}, 422),
        ({"X-API-Key": "may-write", "Content-Type": "application/json; charset=utf-8"}, 202),
        ({"X-API-Key": "may-write", "Content-Type": "application/cloudevents+json"}, 202),
    ],
)
def test_it_takes_what_fastapi_takes(headers: dict[str, str], status: int) -> None:
    direct, usual = (send(app_of(route), b'{"a": 1}', headers) for route in (DirectBodyRoute, APIRoute))
    assert direct == usual
    assert direct[0] == status


def test_it_is_documented_as_any_other_route() -> None:
    assert app_of(DirectBodyRoute).openapi() == app_of(APIRoute).openapi()


async def with_a_query(_: ResourcesDep, raw: RawBody, q: str) -> Response:
    raise NotImplementedError


async def without_a_body(_: ResourcesDep) -> Response:
    raise NotImplementedError


@pytest.mark.parametrize("handler", [with_a_query, without_a_body])
def test_a_handler_that_asks_for_something_else_is_refused(handler: object) -> None:
    with pytest.raises(TypeError, match="/x: a DirectBodyRoute's handler takes"):
        APIRouter(route_class=DirectBodyRoute).add_api_route("/x", handler, methods=["POST"])  # type: ignore[arg-type]
