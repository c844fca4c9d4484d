"""What handlers ask for in their signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from app.errors import Forbidden, Unauthorized
from app.resources import Resources
from app.storage.keys import ApiKey, Scope

ANYONE = ApiKey("loopback", b"", frozenset({"read", "write", "admin"}))
"""Who calls when no key is configured: the service then listens on loopback only."""

_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="needed as soon as any key is configured")


def get_resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


async def get_caller(resources: ResourcesDep, presented: Annotated[str | None, Security(_header)]) -> ApiKey:
    """The key that the request came with. Raises Unauthorized without a known one."""
    keys = resources.keys
    if keys.is_open:
        return ANYONE
    if not presented:
        raise Unauthorized("header X-API-Key: missing")
    caller = keys.find(presented)
    if caller is None:
        raise Unauthorized("header X-API-Key: not a known key, or revoked")
    return caller


Caller = Annotated[ApiKey, Depends(get_caller)]


def require(scope: Scope) -> Callable[[ApiKey], ApiKey]:
    """A dependency that lets only keys of this scope pass, and hands on the key."""

    async def has_scope(caller: Caller) -> ApiKey:
        if scope not in caller.scopes:
            raise Forbidden(f"header X-API-Key: key {caller.name!r} lacks the scope {scope!r}")
        return caller

    return has_scope  # type: ignore[return-value]
