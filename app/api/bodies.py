"""Request bodies: read as bytes, parsed and checked in one pass, refused field by field.

FastAPI's own way (json.loads, then validation of Python objects) is slower and lets pass what Postgres can't store:
lone surrogates, NaN, numbers without bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from app.errors import FieldError, Invalid

Parsed = TypeVar("Parsed")

MOST_ERRORS = 1_000
ATTRIBUTES_BYTES = 16 * 1024
ATTRIBUTES_DEPTH = 16

Name = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
"""A category, a tag, a kind: short text without control characters."""


class Strict(BaseModel):
    """A body in which unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def example(**fields: Any) -> ConfigDict:
    """The `model_config` of an answer that shows itself in OpenAPI by this example."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


async def read_json(request: Request) -> bytes:
    """The body as it came. Raises Invalid where it does not call itself JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        # Also what keeps other sites' pages from posting here without a CORS preflight.
        raise Invalid.field(("header", "content-type"), f"must be application/json, not {kind or 'absent'}")
    return await request.body()


RawBody = Annotated[bytes, Depends(read_json)]


def parse(adapter: TypeAdapter[Parsed], raw: bytes) -> Parsed:
    """The body as `adapter` has it. Raises Invalid with one error for each field that is wrong."""
    try:
        return adapter.validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    fields = [FieldError(("body", *each["loc"]), _said(each["msg"])) for each in found[:MOST_ERRORS]]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise Invalid(f"{'.'.join(map(str, fields[0].loc))}: {fields[0].msg}{more}", errors=fields)


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


def documented(schema: Mapping[str, Any], examples: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAPI says about a body that `parse` reads: its schema and named examples."""
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def many(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an array of up to 1,000 of these."""
    return {"type": "array", "maxItems": 1000, "items": schema}


class JsonAnswer(Response):
    """A 200 that nobody between may keep, as JSON; without the steps that Starlette takes to join headers."""

    def __init__(self, content: Any) -> None:
        self.status_code, self.background, self.body = 200, None, orjson.dumps(content)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), *_NEVER_KEPT]


_NEVER_KEPT = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


def json_answer(content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """orjson bytes; aware times become RFC 3339 with Z."""
    # NON_STR_KEYS: SQLAlchemy names the columns of a row by a subclass of str.
    body = orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)
    return Response(body, status, headers, media_type="application/json")


def _bounded(attributes: dict[str, Any]) -> dict[str, Any]:
    for depth, value in _parts(attributes, 1):
        if depth > ATTRIBUTES_DEPTH:
            raise ValueError(f"must not be nested deeper than {ATTRIBUTES_DEPTH} levels")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("must not contain NUL characters")
        # Postgres gives a large float back as an integer with all its digits. NaN is within no bounds.
        if isinstance(value, int | float) and not -(2**63) <= value < 2**63:
            raise ValueError("numbers must fit into 64 bits")
    if len(orjson.dumps(attributes)) > ATTRIBUTES_BYTES:
        raise ValueError(f"must not exceed {ATTRIBUTES_BYTES} bytes as JSON")
    return attributes


def _parts(value: Any, depth: int) -> Iterator[tuple[int, Any]]:
    """Every key and value in it, with its depth; no deeper than is allowed, and one level to tell."""
    yield depth, value
    if depth > ATTRIBUTES_DEPTH:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield depth, key
            yield from _parts(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _parts(inner, depth + 1)


Attributes = Annotated[dict[str, Any], AfterValidator(_bounded)]
"""Free-form JSON: at most 16 KiB, 16 levels, numbers within ±2**63, no NUL characters."""
