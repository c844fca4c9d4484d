"""Every error as problem+json (RFC 9457): one shape, one place."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import orjson
import psycopg2
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from app import telemetry
from app.errors import FieldError, Invalid, SegueError, TooMany, Unavailable
from app.storage.database import cause_of

log = logging.getLogger(__name__)

DISK_FULL = "53100"
READ_ONLY = "25006"
"""SQLSTATEs: no room; a server that is, or has just become, a replica."""

_WHY_NOT = {
    DISK_FULL: "Postgres has no room left on its disk; retry",
    READ_ONLY: "Postgres takes no changes now; retry",
}

PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "about:blank",
    "title": "Invalid request",
    "status": 422,
    "detail": "query.limit: Input should be less than or equal to 1000",
    "errors": [{"loc": ["query", "limit"], "msg": "Input should be less than or equal to 1000"}],
}


class ProblemField(BaseModel):
    """One thing wrong with the request."""

    loc: list[str | int] = Field(description="where: `body`, `query`, `path` or `header`, then keys and indices")
    msg: str = Field(description="what is wrong, and what would be right")


class Problem(BaseModel):
    """The one shape of every error (RFC 9457)."""

    model_config = ConfigDict(json_schema_extra={"examples": [PROBLEM_EXAMPLE]})

    type: str = Field(description="URI reference of the kind of problem", examples=["about:blank"])
    title: str = Field(description="the kind of problem in words", examples=["Invalid request"])
    status: int = Field(description="the HTTP status again", examples=[422])
    detail: str = Field(description="names the offending key and value", examples=["query.limit: at most 1000"])
    errors: list[ProblemField] = Field(default=[], description="on 422: each field that is wrong")


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "The request is at fault; `detail` says how",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
    "5XX": {
        "description": "The service is at fault, or a dependency is away; with `Retry-After` where it helps",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    errors: Iterable[FieldError] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    """A problem+json answer."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    fields = [{"loc": list(error.loc), "msg": error.msg} for error in errors]
    if fields or status == 422:
        body["errors"] = fields
    # Ids in an error may hold lone surrogates: `replace` keeps the answer valid UTF-8.
    return Response(_dump(body), status, headers, media_type="application/problem+json")


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body, default=str).encode("utf-8", "replace")


def install(app: FastAPI) -> None:
    """Registers the one handler for each family of errors."""
    # Starlette types a handler by Exception; each here gets the kind it was registered for.
    app.add_exception_handler(SegueError, _domain)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(RedisError, _redis)
    app.add_exception_handler(OperationalError, _postgres)
    app.add_exception_handler(PoolTimeoutError, _postgres)
    app.add_exception_handler(DBAPIError, _postgres)
    app.add_exception_handler(psycopg2.OperationalError, _postgres)
    app.add_exception_handler(psycopg2.InterfaceError, _postgres)
    app.add_exception_handler(Exception, bug)


def _domain(_: Request, error: SegueError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, (Unavailable, TooMany)) else {}
    if isinstance(error, TooMany) and error.limit is not None:
        # draft-ietf-httpapi-ratelimit-headers: the quota per window in seconds; what is left, and until when.
        headers["RateLimit-Policy"] = f'"key";q={max(1, int(error.limit))};w=1'
        headers["RateLimit"] = f'"key";r=0;t={error.retry_after}'
    if error.status == 401:
        headers["WWW-Authenticate"] = 'ApiKey realm="segue"'
    return problem(error.status, error.title, error.detail, errors=error.errors, headers=headers)


def _validation(_: Request, error: RequestValidationError) -> Response:
    fields = [FieldError(tuple(item["loc"]), item["msg"].removeprefix("Value error, ")) for item in error.errors()]
    first = fields[0]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    detail = f"{'.'.join(map(str, first.loc))}: {first.msg}{more}"
    return problem(422, Invalid.title, detail, errors=fields)


def _http(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # The router names only the methods of the first route on this path.
        route = getattr(request.scope.get("route"), "path", "")
        operations = request.app.openapi()["paths"].get(route, {})
        headers["Allow"] = ", ".join(method.upper() for method in operations) or headers.get("Allow", "")
    return problem(error.status_code, str(error.detail), str(error.detail), headers=headers)


def _redis(_: Request, error: Exception) -> Response:
    telemetry.DEPENDENCY_ERRORS.labels("redis").inc()
    log.warning("Redis: %s", error)
    return problem(503, Unavailable.title, "Redis does not answer; retry", headers={"Retry-After": "1"})


def _postgres(request: Request, error: Exception) -> Response:
    state = getattr(error.orig, "pgcode", None) if isinstance(error, DBAPIError) else None
    is_away = isinstance(error, (OperationalError, PoolTimeoutError)) or getattr(error, "connection_invalidated", False)
    if not is_away and state != READ_ONLY:
        return bug(request, error)
    telemetry.DEPENDENCY_ERRORS.labels("postgres").inc()
    log.warning("Postgres: %s", cause_of(error))
    detail = _WHY_NOT.get(state or "", "Postgres does not answer; retry")
    return problem(503, Unavailable.title, detail, headers={"Retry-After": "1"})


def bug(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, SegueError.title, "The service failed on this request; its log has the reason")
