"""Times as every endpoint takes them: RFC 3339 with a zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AHEAD = timedelta(minutes=5)


def _parse(given: object) -> datetime:
    if not isinstance(given, str) or not RFC3339.fullmatch(given):
        raise ValueError("must be an RFC 3339 time with a zone, such as 2026-03-14T09:30:00Z")
    try:
        return datetime.fromisoformat(given.upper()).astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie between the years 1 and 9999") from None


def _happened(at: datetime) -> datetime:
    if at < EPOCH:
        raise ValueError("must not be before 1970")
    if at > datetime.now(UTC) + AHEAD:
        raise ValueError("must not be more than 5 minutes ahead of the server's clock")
    return at


Instant = Annotated[datetime, BeforeValidator(_parse), WithJsonSchema({"type": "string", "format": "date-time"})]
PastInstant = Annotated[Instant, AfterValidator(_happened)]
"""Something that happened: from 1970 to five minutes ahead of the server's clock."""
