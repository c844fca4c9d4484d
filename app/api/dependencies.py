"""What handlers ask for in their signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from app.errors import Forbidden, Unauthorized
from app.resources import Resources
from app.storage.keys import ApiKey, Scope

ANYONE = ApiKey("loopback", b"", frozenset({"read", "write", "admin"}))
"""Who calls when no key is configured: the service then listens on loopback only."""

HEADER = "X-API-Key"
_header = APIKeyHeader(name=HEADER, auto_error=False, description="needed as soon as any key is configured")


async def get_resources(request: Request) -> Resources:
    """`async`, though it waits for nothing: FastAPI would hand it to a thread, which costs more than some answers."""
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


async def get_caller(resources: ResourcesDep, presented: Annotated[str | None, Security(_header)]) -> ApiKey:
    """The key that the request came with. Raises Unauthorized without a known one."""
    return caller_of(resources, presented)


def caller_of(resources: Resources, presented: str | None) -> ApiKey:
    """The key of this text. Raises Unauthorized without a known one."""
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


@dataclass(frozen=True, slots=True)
class require:  # noqa: N801 - reads as a verb where it is used: Depends(require("read"))
    """A dependency that lets only keys of this scope pass, and hands on the key."""

    scope: Scope

    async def __call__(self, caller: Caller) -> ApiKey:
        return self.of(caller)

    def of(self, caller: ApiKey) -> ApiKey:
        """Raises Forbidden for a key without the scope."""
        if self.scope not in caller.scopes:
            raise Forbidden(f"header X-API-Key: key {caller.name!r} lacks the scope {self.scope!r}")
        return caller
