"""The checker finds what is wrong with a history: a checker that cannot fail proves nothing."""

from __future__ import annotations

import pytest

from tests.steadfast.checker import (
    Violation,
    batch_violations,
    is_blocked,
    states_of,
    storage_violations,
    user_violations,
)
from tests.steadfast.history import Answer, Batch, Call, Change, Event, StoredEvent, User

ITEMS = [f"i{n}" for n in range(8)]
BLOCKABLE = ["b0"]
CATALOGUE = [*ITEMS, *BLOCKABLE]


def batch(at: float, *acts: tuple[str, str], took: float = 1.0, acknowledged: bool = True) -> Batch:
    """One of `ann`'s: (kind, item) each, sent at `at`."""
    events = tuple(Event(f"e{at}-{n}", "ann", item, kind) for n, (kind, item) in enumerate(acts))
    receipt = {"accepted": len(events), "duplicates": 0}
    call = Call("A", at, at + took, 202, receipt) if acknowledged else Call("A", at, at + took, failure="reset")
    return Batch(events, at, [call])


def answer(at: float, route: str, *hidden: str, took: float = 0.5, status: int | None = 200) -> Answer:
    """Shows everything that is not hidden."""
    shown = tuple(item for item in CATALOGUE if item not in hidden)
    return Answer(Call("B", at, at + took, status), route, shown)


def change(at: float, *, blocks: bool, took: float = 1.0, status: int | None = 200) -> Change:
    return Change("b0", blocks, at, [Call("A", at, at + took, status)])


def found(user: User, *changes: Change) -> list[Violation]:
    return list(user_violations(user, CATALOGUE, BLOCKABLE, {"b0": changes}))


def kinds(user: User, *changes: Change) -> list[str]:
    return [violation.kind for violation in found(user, *changes)]


def ann(*batches: Batch, answers: list[Answer]) -> User:
    return User("ann", list(batches), answers)


LIKE_0 = batch(1, ("like", "i0"))
LIKES_1_2 = batch(3, ("like", "i1"), ("like", "i2"))
VIEWS_3_4 = batch(5, ("view", "i3"), ("view", "i4"))


def test_a_history_that_keeps_every_promise_has_no_violations() -> None:
    user = ann(
        LIKE_0,
        LIKES_1_2,
        VIEWS_3_4,
        answers=[
            answer(0, "new"),
            answer(1.5, "new"),  # not acknowledged yet: either
            answer(1.6, "few", "i0"),
            answer(2.1, "few", "i0"),
            answer(4.1, "few", "i0", "i1", "i2"),
            answer(6.1, "established", "i0", "i1", "i2", "i3", "i4"),
        ],
    )

    assert found(user) == []


def test_an_answer_from_before_an_acknowledged_batch_is_found_and_says_how_old_it_is() -> None:
    user = ann(LIKE_0, LIKES_1_2, answers=[answer(4.1, "few", "i0")])

    (violation,) = found(user)

    assert violation.kind == "seen item shown"
    assert "i1, i2; it is an answer from after 1 of 2 acknowledged batches" in violation.what
    assert "POST /events [ann like i1, ann like i2]" in violation.history
    assert "GET /recommend" in violation.history


def test_an_answer_that_began_before_the_acknowledgement_may_be_old() -> None:
    assert kinds(ann(LIKE_0, answers=[answer(1.9, "new", took=5)])) == []
    assert kinds(ann(LIKE_0, answers=[answer(2.1, "new", took=5)])) == ["seen item shown"]


def test_a_batch_counts_as_a_whole_or_not_at_all() -> None:
    under_way = batch(3, ("like", "i1"), ("like", "i2"), acknowledged=False)

    assert kinds(ann(LIKE_0, under_way, answers=[answer(9, "few", "i0")])) == []
    assert kinds(ann(LIKE_0, under_way, answers=[answer(9, "few", "i0", "i1", "i2")])) == []
    assert kinds(ann(LIKE_0, under_way, answers=[answer(9, "few", "i0", "i1")])) == ["half a batch counted"]


def test_a_past_of_another_user_and_one_from_the_future_are_found() -> None:
    assert kinds(ann(answers=[answer(0, "few", "i5")])) == ["untouched item hidden"]
    assert kinds(ann(LIKE_0, answers=[answer(0.1, "few", "i0")])) == ["untouched item hidden"]


def test_the_route_must_be_that_of_the_past() -> None:
    established = ["i0", "i1", "i2", "i3", "i4"]

    assert kinds(ann(LIKE_0, answers=[answer(2.1, "new", "i0")])) == ["wrong route"]
    assert kinds(ann(LIKE_0, LIKES_1_2, VIEWS_3_4, answers=[answer(7, "few", *established)])) == ["wrong route"]


def test_impressions_are_no_past_and_a_view_takes_no_like_back() -> None:
    user = ann(batch(1, ("impression", "i7"), ("like", "i0")), batch(3, ("view", "i0")), answers=[])

    assert [sorted(state.seen) for state in states_of(user)] == [[], ["i0"], ["i0"]]
    assert states_of(user)[-1].positives == {"i0"}


def test_only_a_degraded_answer_may_show_what_was_seen() -> None:
    assert kinds(ann(LIKE_0, answers=[answer(9, "degraded")])) == []
    assert kinds(ann(LIKE_0, answers=[answer(9, "few")])) == ["seen item shown"]


def test_recommendations_are_never_refused_and_never_late() -> None:
    slow = answer(1, "new", took=20)

    assert kinds(ann(answers=[answer(1, "", *CATALOGUE, status=503)])) == ["recommendations refused"]
    assert kinds(ann(answers=[answer(1, "", *CATALOGUE, status=None)])) == []
    assert kinds(ann(answers=[slow])) == ["no answer in time"]
    assert not list(user_violations(ann(answers=[slow]), CATALOGUE, BLOCKABLE, {}, [(5, 6)]))


def page(at: float, *shown: str, status: int = 200) -> Answer:
    return Answer(Call("B", at, at + 0.5, status), "few", shown, is_page=True)


def test_a_page_may_leave_out_anything_and_shows_nothing_seen_or_blocked() -> None:
    put = change(5, blocks=True)

    assert kinds(ann(LIKE_0, answers=[page(3, "i1", "i2"), page(3, "b0"), page(7, "i1")]), put) == []
    assert kinds(ann(LIKE_0, answers=[page(3, "i0", "i1")])) == ["seen item shown"]
    assert kinds(ann(answers=[page(7, "b0")]), put) == ["blocked item shown"]
    assert kinds(ann(answers=[page(1, status=410), page(1, status=503)])) == []
    assert kinds(ann(answers=[page(1, status=500)])) == ["recommendations refused"]


def test_an_item_shown_twice_is_found() -> None:
    twice = Answer(Call("A", 1, 2, 200), "new", (*CATALOGUE, "i3"))

    assert kinds(ann(answers=[twice])) == ["item shown twice"]


def test_a_block_holds_from_its_acknowledgement_until_its_lifting_begins() -> None:
    put, lifted = change(1, blocks=True), change(5, blocks=False)

    assert kinds(ann(answers=[answer(0, "new"), answer(3, "new", "b0"), answer(7, "new")]), put, lifted) == []
    assert kinds(ann(answers=[answer(1.5, "new"), answer(1.5, "new", "b0")]), put, lifted) == []
    assert kinds(ann(answers=[answer(3, "new")]), put, lifted) == ["blocked item shown"]
    assert kinds(ann(answers=[answer(7, "new", "b0")]), put, lifted) == ["lifted block still hides"]
    assert kinds(ann(answers=[answer(0, "new", "b0")])) == ["lifted block still hides"]


def test_a_change_without_an_answer_leaves_open_what_is_shown() -> None:
    put, doubtful = change(1, blocks=True), change(5, blocks=False, status=None)

    assert is_blocked([put, doubtful], answer(4, "new")) is True
    assert is_blocked([put, doubtful], answer(9, "new")) is None


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (Call("A", 1, 2, 202, {"accepted": 2, "duplicates": 0}), None),
        (Call("A", 1, 2, failure="ConnectionResetError"), None),
        (Call("A", 1, 2, 503, {"detail": "Postgres is away: retry with the same ids"}, "1"), None),
        (Call("A", 1, 2, 202, {"accepted": 1, "duplicates": 1}), "half-stored batch"),
        (Call("A", 1, 2, 202, {"accepted": 0, "duplicates": 2}), "half-stored batch"),
        (Call("A", 1, 2, 503, {"detail": "retry with the same ids"}), "unhelpful 503"),
        (Call("A", 1, 2, 503, {"detail": "busy"}, "1"), "unhelpful 503"),
        (Call("A", 1, 2, 500, {"detail": "a bug"}), "events refused"),
        (Call("A", 1, 2, 422, {"detail": "unknown user"}), "events refused"),
    ],
)
def test_what_an_answer_to_a_first_attempt_may_say(call: Call, kind: str | None) -> None:
    sent = Batch((Event("a", "ann", "i0", "like"), Event("b", "ann", "i1", "like")), 1, [call])

    assert [violation.kind for violation in batch_violations(sent)] == ([] if kind is None else [kind])


def test_a_second_attempt_may_find_everything_stored_but_not_half_of_it() -> None:
    lost = Call("A", 1, 2, failure="ConnectionResetError")
    again = Call("B", 2, 3, 202, {"accepted": 0, "duplicates": 2})
    half = Call("B", 2, 3, 202, {"accepted": 1, "duplicates": 1})
    events = (Event("a", "ann", "i0", "like"), Event("b", "ann", "i1", "like"))

    assert list(batch_violations(Batch(events, 1, [lost, again]))) == []
    assert [violation.kind for violation in batch_violations(Batch(events, 1, [lost, half]))] == ["half-stored batch"]


def stored(*batches: Batch) -> dict[str, list[StoredEvent]]:
    return {
        event.event_id: [StoredEvent(event.user_id, event.item_id, event.kind, event.value)]
        for each in batches
        for event in each.events
    }


def misstored(sent: Batch, rows: dict[str, list[StoredEvent]]) -> list[str]:
    return [violation.kind for violation in storage_violations([sent], rows)]


def test_what_is_acknowledged_is_stored_exactly_once_and_as_sent() -> None:
    rows = stored(LIKES_1_2)
    first, second = (event.event_id for event in LIKES_1_2.events)

    assert misstored(LIKES_1_2, rows) == []
    assert misstored(LIKES_1_2, {}) == ["acknowledged event lost"]
    assert misstored(LIKES_1_2, {first: rows[first]}) == ["acknowledged event lost"]
    assert misstored(LIKES_1_2, rows | {second: rows[second] * 2}) == ["event stored twice"]
    assert misstored(LIKES_1_2, rows | {second: rows[first]}) == ["event altered"]


def test_what_was_never_answered_is_stored_whole_or_not_at_all() -> None:
    sent = batch(3, ("like", "i1"), ("like", "i2"), acknowledged=False)
    rows = stored(sent)
    first = sent.events[0].event_id

    assert misstored(sent, rows) == []
    assert misstored(sent, {}) == []
    assert misstored(sent, {first: rows[first]}) == ["half-stored batch"]
