"""Domain errors, each knowing its HTTP status; `api.problems` renders all of them as problem+json.

SegueError
├── Invalid             422  the request contradicts the contract; `errors` says where
├── Unauthorized        401  no key, or an unknown one
├── Forbidden           403  the key lacks the scope
├── NotFound            404
├── Conflict            409  the state of things forbids it now
├── Gone                410  an expired cursor
├── TooLarge            413
├── TooMany             429  of requests with this key, or of wrong keys
└── Unavailable         503  a dependency is away or a queue is full; retry with the same ids
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class FieldError(NamedTuple):
    """One thing wrong with a request: where, and what."""

    loc: tuple[str | int, ...]
    msg: str


class SegueError(Exception):
    """An error that the caller should hear of; `detail` names the offending key and value."""

    status = 500
    title = "Internal error"

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)


class Invalid(SegueError):
    status = 422
    title = "Invalid request"

    @classmethod
    def field(cls, loc: tuple[str | int, ...], msg: str) -> Invalid:
        """An error about one field, repeated in `detail`."""
        return cls(f"{'.'.join(map(str, loc))}: {msg}", errors=[FieldError(loc, msg)])


class Unauthorized(SegueError):
    status = 401
    title = "Unauthorized"


class Forbidden(SegueError):
    status = 403
    title = "Forbidden"


class NotFound(SegueError):
    status = 404
    title = "Not found"


class Conflict(SegueError):
    status = 409
    title = "Conflict"


class Gone(SegueError):
    status = 410
    title = "Gone"


class TooLarge(SegueError):
    status = 413
    title = "Body too large"


class TooMany(SegueError):
    status = 429
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after: int, limit: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.limit = limit
        """Requests a second; None where something else is limited."""


class Unavailable(SegueError):
    status = 503
    title = "Unavailable"

    def __init__(self, detail: str, *, retry_after: int = 1) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        """Seconds after which a retry makes sense."""
