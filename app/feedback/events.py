"""What the log of feedback takes in, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Event(NamedTuple):
    """One message about what a user did, checked by whoever made it. A tuple, for it is made in a third of the time.

    kind:      one of settings.FEEDBACK_KINDS, or `unlike`
    value:     rating 0–5 or listened fraction 0–1, else None
    timestamp: aware; None for "now", which is then read from the database's clock, the same for all replicas
    """

    event_id: str
    user_id: str
    item_id: str
    kind: str
    value: float | None
    timestamp: datetime | None
    session_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to one request, given once its events are durable.

    accepted + duplicates is the number of events. Events of an erased user count as accepted: they are
    acknowledged and not stored.
    watermark: id of the transaction that committed them, a decimal number; what reads at a snapshot whose
    xmin is above it has seen them.
    """

    accepted: int
    duplicates: int
    watermark: str
