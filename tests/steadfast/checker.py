"""Which promises a history breaks. Pure: the same for a run and for a history written by hand.

A user's batches are in order, so a user's past is a *state*: what the first n batches made of it. An answer may show
the state of any n from "all that were acknowledged before it began" to "all that were sent before it ended", and
nothing between two batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.steadfast.history import Answer, Batch, Call, Change, Event, StoredEvent, User, moments_of, told

FEW_INTERACTIONS = 5
FEW_POSITIVE = 3
POSITIVE = frozenset({"like", "bookmark", "share", "purchase"})
"""Among the kinds that the clients of `load` send; API.md has all of them."""
LONGEST_ANSWER_S = 8.0
"""Whatever happens to Postgres and Redis. The timeouts are shorter; the rest is for a machine that is busy."""


PAGE_LOST = (410, 503)
"""A slate that Redis forgot, or can't be asked for; its first page is answered all the same."""
Silence = tuple[float, float]
"""From when to when."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise. history: what led to it, to be read by a person."""

    kind: str
    what: str
    at: float
    history: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}\n{self.history}"


@dataclass(frozen=True, slots=True)
class State:
    """A user's past after some batches: the items touched, and how many of them are liked."""

    seen: frozenset[str] = frozenset()
    positives: frozenset[str] = frozenset()

    def after(self, events: Iterable[Event]) -> State:
        """`load` sends no negative event on an item, so an item that is positive stays so."""
        acts = [event for event in events if event.kind != "impression"]
        liked = (event.item_id for event in acts if event.kind in POSITIVE)
        return State(self.seen.union(event.item_id for event in acts), self.positives.union(liked))

    @property
    def route(self) -> str:
        """API.md, `route`."""
        if not self.seen:
            return "new"
        is_few = len(self.seen) < FEW_INTERACTIONS or len(self.positives) < FEW_POSITIVE
        return "few" if is_few else "established"


def user_violations(
    user: User,
    items: Collection[str],
    blockable: Collection[str],
    changes: Mapping[str, Sequence[Change]],
    silences: Sequence[Silence] = (),
    *,
    longest_answer_s: float = LONGEST_ANSWER_S,
) -> Iterator[Violation]:
    """Every answer that this user should not have got.

    items: all of the catalogue; blockable: those of them that users leave alone and editors block
    changes: of each blockable item, in order
    silences: while these lasted a service may have had no process that could answer
    """
    states = states_of(user)
    catalogue, never_touched = frozenset(items), frozenset(blockable)
    for answer in user.answers:
        yield from _unanswered(user, answer, silences, longest_answer_s)
        if not answer.is_promised:
            continue
        for found in (_of_past(user, states, answer, catalogue - never_touched), _of_slate(answer)):
            if found is not None:
                kind, what = found
                history = told(moments_of(user, until=answer.call.ended))
                yield Violation(kind, f"{user.user_id}, {_asked(answer)}: {what}", answer.call.began, history)
        yield from _of_blocks(answer, {item: changes.get(item, ()) for item in never_touched})


def states_of(user: User) -> list[State]:
    """After none of the user's batches, after the first, and so on."""
    states = [State()]
    for batch in user.batches:
        states.append(states[-1].after(event for event in batch.events if event.user_id == user.user_id))
    return states


def _unanswered(
    user: User, answer: Answer, silences: Sequence[Silence], longest_answer_s: float
) -> Iterator[Violation]:
    call = answer.call
    if call.status not in ((None, 200, *PAGE_LOST) if answer.is_page else (None, 200)):
        yield Violation("recommendations refused", f"{user.user_id}, {_asked(answer)}: {call}", call.began)
    seconds = call.ended - call.began
    if seconds > longest_answer_s and not any(began < call.ended and call.began < ended for began, ended in silences):
        yield Violation("no answer in time", f"{user.user_id}, {_asked(answer)}: {seconds:.1f} s", call.began)


def _of_slate(answer: Answer) -> tuple[str, str] | None:
    if len(set(answer.shown)) < len(answer.shown):
        return "item shown twice", ", ".join(sorted(item for item in answer.shown if answer.shown.count(item) > 1))
    return None


def _of_past(user: User, states: Sequence[State], answer: Answer, touchable: frozenset[str]) -> tuple[str, str] | None:
    acknowledged, sent = _batches_at(user, answer)
    if answer.is_page:
        again = states[acknowledged].seen.intersection(answer.shown)
        return ("seen item shown", f"{', '.join(sorted(again))}, on a page") if again else None
    hidden = touchable.difference(answer.shown)
    if any((state.seen, state.route) == (hidden, answer.route) for state in states[acknowledged : sent + 1]):
        return None
    if again := states[acknowledged].seen - hidden:
        older = [n for n, state in enumerate(states[:acknowledged]) if state.seen == hidden]
        of_then = f"; it is an answer from after {older[-1]} of {acknowledged} acknowledged batches" if older else ""
        return "seen item shown", f"{', '.join(sorted(again))}{of_then}"
    if strange := hidden - states[sent].seen:
        return "untouched item hidden", ", ".join(sorted(strange))
    if any(state.seen == hidden for state in states[acknowledged : sent + 1]):
        return "wrong route", f"{answer.route} instead of {states[acknowledged].route}"
    return "half a batch counted", f"{sorted(hidden)} is hidden, which no number of whole batches makes"


def _batches_at(user: User, answer: Answer) -> tuple[int, int]:
    """How many batches the answer must count, and how many it may."""
    call = answer.call
    times = [batch.acknowledged_at for batch in user.batches]
    return (
        sum(at is not None and at < call.began for at in times),
        sum(batch.began < call.ended for batch in user.batches),
    )


def _of_blocks(answer: Answer, changes: Mapping[str, Sequence[Change]]) -> Iterator[Violation]:
    for item, of_item in changes.items():
        blocked, is_shown = is_blocked(of_item, answer), item in answer.shown
        if blocked is None or blocked is not is_shown or (answer.is_page and not is_shown):
            continue
        kind = "blocked item shown" if blocked else "lifted block still hides"
        moments = [(change.began, str(change)) for change in of_item if change.began < answer.call.ended]
        history = told([*moments[-4:], (answer.call.began, f"GET /recommend → {answer.call} {answer.route}")])
        yield Violation(kind, f"{item}, {_asked(answer)}", answer.call.began, history)


def is_blocked(changes: Iterable[Change], answer: Answer) -> bool | None:
    """Whether the answer must be one of a blocked item; None where a change was under way, so that it may be either."""
    blocked = False
    for change in changes:
        if change.began >= answer.call.ended:
            break
        acknowledged_at = change.acknowledged_at
        if acknowledged_at is None or acknowledged_at >= answer.call.began:
            return None
        blocked = change.blocks
    return blocked


def batch_violations(batch: Batch) -> Iterator[Violation]:
    """What the answers to one batch should not have said."""
    for number, call in enumerate(batch.calls):
        if wrong := _wrong_with(call, len(batch.events), is_first=number == 0):
            kind, what = wrong
            yield Violation(kind, what, call.began, told([(batch.began, str(batch))]))


def _wrong_with(call: Call, size: int, *, is_first: bool) -> tuple[str, str] | None:
    match call.status:
        case None:
            return None
        case 202:
            return _wrong_with_receipt(call.body, size, is_first)
        case 503 if call.retry_after is None:
            return "unhelpful 503", f"without Retry-After: {call}"
        case 503 if "retry with the same ids" not in str(call.body.get("detail")):
            return "unhelpful 503", f"does not say what to do: {call}"
        case 503:
            return None
    return "events refused", str(call)


def _wrong_with_receipt(receipt: Mapping[str, Any], size: int, is_first: bool) -> tuple[str, str] | None:
    """What was stored by this attempt, or by another one of the same batch."""
    counts = receipt.get("accepted"), receipt.get("duplicates")
    if counts == (size, 0) or (counts == (0, size) and not is_first):
        return None
    return "half-stored batch", f"{counts[0]} of {size} events were new, {counts[1]} were not"


def storage_violations(batches: Iterable[Batch], stored: Mapping[str, Sequence[StoredEvent]]) -> Iterator[Violation]:
    """What Postgres holds against what was acknowledged. stored: every row of each event id."""
    for batch in batches:
        for kind, what in _misstored(batch, stored):
            yield Violation(kind, what, batch.began, told([(batch.began, str(batch))]))


def _misstored(batch: Batch, stored: Mapping[str, Sequence[StoredEvent]]) -> Iterator[tuple[str, str]]:
    missing = [event for event in batch.events if not stored.get(event.event_id)]
    if missing and batch.acknowledged_at is not None:
        yield "acknowledged event lost", ", ".join(event.event_id for event in missing)
    elif 0 < len(missing) < len(batch.events):
        yield "half-stored batch", f"{len(missing)} of {len(batch.events)} events are not in Postgres"
    for event in batch.events:
        rows = stored.get(event.event_id, ())
        if len(rows) > 1:
            yield "event stored twice", f"{event.event_id}: {len(rows)} rows"
        sent = StoredEvent(event.user_id, event.item_id, event.kind, event.value)
        if any(row != sent for row in rows):
            yield "event altered", f"{event.event_id}: {rows} instead of {sent}"


def _asked(answer: Answer) -> str:
    return f"asked of {answer.call.service} at {answer.call.began:.3f}"
