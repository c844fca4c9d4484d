"""What handlers ask for in their signatures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader

from app.api.limits import Limits
from app.api.same_site import refuse_other_sites
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


async def get_caller(request: Request, _: Annotated[str | None, Security(_header)]) -> ApiKey:
    """The key that the request came with; see `caller_of`."""
    return caller_of(request)


def caller_of(request: Request) -> ApiKey:
    """The key that the request came with.

    Raises Unauthorized without a known one, TooMany where it is used too often or too many wrong ones were tried, and
    Forbidden where no key is needed and another site's page asks.
    """
    resources: Resources = request.app.state.resources
    if resources.keys.is_open:
        refuse_other_sites(request.headers, resources.settings.cors_origins)
        return ANYONE
    limits: Limits = request.app.state.limits
    presented = request.headers.get(HEADER)
    if not presented:
        raise Unauthorized("header X-API-Key: missing")
    caller = resources.keys.find(presented)
    if caller is None:
        limits.guesses.note(request.client.host if request.client else "", presented)
        raise Unauthorized("header X-API-Key: not a known key, or revoked")
    limits.rates.take(caller)
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
