"""What clients asked and were answered during a run. Times are monotonic seconds of the one process that asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it was sent; without a timestamp, so what is sent later is later."""

    event_id: str
    user_id: str
    item_id: str
    kind: str
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call that is over.

    status:  None where there was no answer, and `failure` says why
    body:    of the answer, as JSON
    """

    service: str
    began: float
    ended: float
    status: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    retry_after: str | None = None
    failure: str = ""

    def __str__(self) -> str:
        if self.status is None:
            return f"{self.service}: {self.failure}"
        return f"{self.service}: {self.status} {self.body.get('detail', '')}".rstrip()


@dataclass(slots=True)
class Batch:
    """The events of one POST /events, and every attempt to have it answered 202. All attempts send the same."""

    events: tuple[Event, ...]
    began: float
    calls: list[Call] = field(default_factory=list)

    @property
    def acknowledged_at(self) -> float | None:
        """When the client knew; None as long as it did not."""
        return next((call.ended for call in self.calls if call.status == 202), None)

    def __str__(self) -> str:
        events = ", ".join(f"{event.user_id} {event.kind} {event.item_id}" for event in self.events)
        attempts = "; ".join(f"at {call.began:.3f}–{call.ended:.3f} {call}" for call in self.calls)
        return f"POST /events [{events}] → {attempts or 'not answered'}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A call of GET /recommend.

    is_page: it is one page of several; else more items were asked for than there are, so that what it leaves out is
             hidden from this user
    """

    call: Call
    route: str = ""
    shown: tuple[str, ...] = ()
    is_page: bool = False

    @property
    def is_promised(self) -> bool:
        """Whether all promises hold for it: a degraded one says that the user's past or the rules were out of reach."""
        return self.call.status == 200 and self.route != "degraded"


@dataclass(slots=True)
class User:
    """One user's life. One client writes it, a batch at a time: the next begins when the last is acknowledged, and
    none follows one that was given up."""

    user_id: str
    batches: list[Batch] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


@dataclass(slots=True)
class Change:
    """A block that is put on an item (`blocks`) or lifted. One client changes an item, a change at a time, and begins
    none while an unanswered attempt at the last may still come into effect."""

    item_id: str
    blocks: bool
    began: float
    calls: list[Call] = field(default_factory=list)

    @property
    def acknowledged_at(self) -> float | None:
        return next((call.ended for call in self.calls if call.status == 200), None)

    def __str__(self) -> str:
        verb = "PUT" if self.blocks else "DELETE"
        attempts = "; ".join(f"at {call.began:.3f}–{call.ended:.3f} {call}" for call in self.calls)
        return f"{verb} /admin/blocks/{self.item_id} → {attempts or 'not answered'}"


@dataclass(slots=True)
class Fault:
    """Something that was done to the service. healed_at: when everything was found to serve again."""

    kind: str
    what: str
    began: float
    over: float
    healed_at: float | None = None


class StoredEvent(NamedTuple):
    """An event as Postgres has it."""

    user_id: str
    item_id: str
    kind: str
    value: float | None


def told(moments: Iterable[tuple[float, str]]) -> str:
    """A history to read: a line per moment, in order."""
    return "\n".join(f"    {at:10.3f}  {what}" for at, what in sorted(moments))


def moments_of(user: User, *, until: float) -> Iterator[tuple[float, str]]:
    """What the user did, and was answered, in words; answers that show the same are told once."""
    for batch in user.batches:
        if batch.began <= until:
            yield batch.began, str(batch)
    before: tuple[str, int] | None = None
    for answer in sorted(user.answers, key=lambda answer: answer.call.began):
        if answer.call.began > until or (answer.route, len(answer.shown)) == before:
            continue
        before = answer.route, len(answer.shown)
        yield (
            answer.call.began,
            f"GET /recommend until {answer.call.ended:.3f} → {answer.call} {before[0]}, {before[1]} items",
        )
