"""What is kept of users from one question to the next changes no answer: to the last bit it is that of a blend which
was never asked before."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.contracts import History, Query
from models.live.changes import Changes, DayLedger
from models.live.state import LiveState
from models.ranking.features import CONTEXTS
from models.ranking.listwise import ListwiseRanker
from models.two_stage import Blend
from models.views import LatelyUsed
from tests.models.test_candidates import N_ITEMS, N_USERS, NOW, blend_and_queries

ASKERS = 12


def ranker(f: int) -> ListwiseRanker:
    """One that looks at everything: whatever differs in a feature differs in the scores."""
    rng, c, h = np.random.default_rng(5), len(CONTEXTS), 8
    shapes = (f,), (c, f), (h, f), (c, h), (h,), (h,)
    wide, tilt, hidden, situation, offset, out = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes)
    met = np.array([[-100] * c, [100] * c], np.float32)
    return ListwiseRanker(wide, tilt, hidden, situation, offset, out, met)


@pytest.fixture(scope="module")
def asked() -> tuple[Blend, list[Query]]:
    blend, queries = blend_and_queries()
    # Long answers, so that it shows where any of the candidates stands.
    return replace(blend, ranker=ranker(len(blend.feature_names))), [
        replace(query, limit=400, eligible=np.ones(N_ITEMS, np.bool_)) for query in queries[:ASKERS]
    ]


class Crowd:
    """Known users and newcomers meet items, of which some are those that the askers know."""

    def __init__(self, queries: list[Query], seed: int) -> None:
        live = queries[0].live
        assert isinstance(live, LiveState)
        self.live = LiveState.from_parts(live.parts())
        self.rng = np.random.default_rng(seed)
        self.at = NOW + 60.0
        self._ledger = DayLedger()
        self._near = np.concatenate([query.history.positions for query in queries])

    def moves(self, n: int) -> None:
        """n events, folded at once."""
        users = self.rng.integers(0, N_USERS + 20, n).astype(np.int32)
        near, far = self.rng.choice(self._near, n), self.rng.integers(0, N_ITEMS, n)
        items = np.where(self.rng.random(n) < 0.5, near, far).astype(np.int32)
        times = np.sort(self.at - self.rng.random(n))
        self.live.fold(self._ledger.changes(users, items, np.ones(n), times))

    def passes_by(self) -> None:
        """A newcomer comes to an item that leads, where no asker was."""
        far = np.setdiff1d(self.live.leading().chosen, self._near)
        users, items = np.array([N_USERS + 60], np.int32), self.rng.choice(far, 1).astype(np.int32)
        self.live.fold(self._ledger.changes(users, items, np.ones(1), np.array([self.at])))

    def turns_to(self, item: int) -> None:
        """Thirty newcomers come to one item."""
        users = np.arange(N_USERS + 20, N_USERS + 50, dtype=np.int32)
        self.live.fold(self._ledger.changes(users, np.full(30, item, np.int32), np.ones(30), np.full(30, self.at)))

    def forgets(self, user: int) -> None:
        forgotten = np.array([user], np.int32)
        refilled: dict[int, Any] = {}
        for item in self.live.losing(forgotten).tolist():
            left = self.live.visitors(item)
            left = left[left != user]
            refilled[item] = left, np.full(len(left), NOW)
        self.live.fold(Changes(forgotten=forgotten, refilled=refilled))


def longer(history: History, item: int, at: float) -> History:
    kept = history.take(history.positions != item)
    return History(
        np.append(kept.positions, np.int32(item)), np.append(kept.weights, np.float32(1)),
        np.append(kept.signs, np.int8(1)), np.append(kept.timestamps, at),
    )  # fmt: skip


def assert_as_if_never_asked(blend: Blend, query: Query) -> None:
    """Also the live signals are counted from scratch."""
    live = query.live
    assert isinstance(live, LiveState)
    fresh = replace(blend, live_counts=replace(blend.live_counts))
    anew = LiveState.from_parts(live.parts())
    # Which lead is for the state to say, for as long as that holds.
    anew._leaders = live._leaders
    answer, expected = blend.recommend(query), fresh.recommend(replace(query, live=anew))
    assert answer.positions.tolist() == expected.positions.tolist()
    assert answer.scores.tobytes() == expected.scores.tobytes()
    assert blend.reasons(query, answer.positions) == replace(blend).reasons(query, answer.positions)


@pytest.mark.parametrize("seed", range(2))
def test_answers_are_those_of_a_blend_that_was_never_asked(asked: tuple[Blend, list[Query]], seed: int) -> None:
    blend, queries = replace(asked[0]), list(asked[1][:3])
    crowd = Crowd(queries, seed)
    rng = np.random.default_rng(100 + seed)
    found: Counter[str] = Counter()
    for turn in range(120):
        crowd.at += rng.choice([0.0, 0.3, 4.0, 40.0])
        if turn % 30 == 29:
            crowd.forgets(int(rng.integers(N_USERS)))
        match rng.integers(4):
            case 0:
                crowd.moves(int(rng.choice([1, 8, 60, 600])))
            case 1:
                crowd.passes_by()
            case 2 if turn % 2:
                crowd.turns_to(int(rng.integers(N_ITEMS)))
        place = int(rng.integers(len(queries)))
        if rng.random() < 0.1:
            history = longer(queries[place].history, int(rng.integers(N_ITEMS)), crowd.at)
            queries[place] = replace(queries[place], history=history, excluded=history.positions)
        query = replace(queries[place], at=crowd.at, live=crowd.live)
        before = blend._kept.found(blend._asker(query))
        assert_as_if_never_asked(blend, query)
        after = blend._kept.found(blend._asker(query))
        assert after is not None
        if before is None:
            found["anew"] += 1
        elif after.personal is before.personal:
            found["as they were" if after.version == before.version else "as they were, though something happened"] += 1
        else:
            found["again" if after.leading is before.leading else "again, where others lead"] += 1
    assert len(found) == 5, found
    assert min(found.values()) >= 4, found


def test_what_happens_while_a_question_is_answered_counts_for_the_next(
    asked: tuple[Blend, list[Query]], monkeypatch: pytest.MonkeyPatch
) -> None:
    blend, crowd = replace(asked[0]), Crowd(asked[1], seed=3)
    query = replace(asked[1][0], at=NOW + 60, live=crowd.live)
    covisited_each = crowd.live.covisited_each

    def and_then(positions: list[int]) -> list[Any]:
        found = covisited_each(positions)
        crowd.turns_to(positions[0])
        return found

    for _ in range(3):
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(crowd.live, "covisited_each", and_then)
            blend.recommend(query)
        assert_as_if_never_asked(blend, query)


def test_threads_that_ask_while_one_folds_leave_nothing_behind_that_is_old(asked: tuple[Blend, list[Query]]) -> None:
    blend, queries = replace(asked[0]), asked[1]
    crowd, over = Crowd(queries, seed=7), threading.Event()
    failures: list[Exception] = []
    asked_now = [replace(query, at=NOW + 60, live=crowd.live) for query in queries]

    def ask(first: int) -> None:
        turn = first
        try:
            while not over.is_set():
                query = asked_now[turn % ASKERS]
                answer = blend.recommend(query)
                assert len(set(answer.positions.tolist())) == query.limit
                assert np.isfinite(answer.scores).all()
                assert len(blend.reasons(query, answer.positions)) == query.limit
                turn += 1
        except Exception as error:  # noqa: BLE001 - whatever a thread meets is what this test is about
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, ASKERS, 3)]
    for thread in threads:
        thread.start()
    for turn in range(150):
        crowd.moves(1 + turn % 40)
    over.set()
    for thread in threads:
        thread.join()
    assert not failures
    for query in asked_now:
        assert_as_if_never_asked(blend, query)


def test_the_last_that_were_kept_or_asked_for_are_kept() -> None:
    lately = LatelyUsed[int, str](3, most_bytes=1_000)
    for number in range(10):
        lately.keep(number, str(number), 1)
        assert lately.get(0) == "0", "asked for after each of the others"
    assert [lately.get(number) for number in (7, 8, 9)] == [None, "8", "9"]
    lately.keep(8, "another", 1)
    lately.keep(10, "10", 1)
    assert [lately.get(number) for number in (0, 8, 9, 10)] == [None, "another", "9", "10"]


def test_no_more_is_kept_than_so_many_bytes() -> None:
    lately = LatelyUsed[int, str](1_000, most_bytes=100)
    for number in range(10):
        lately.keep(number, str(number), 30)
    assert [number for number in range(10) if lately.get(number)] == [7, 8, 9]
    lately.keep(8, "smaller", 10)
    lately.keep(10, "10", 30)
    assert [number for number in range(11) if lately.get(number)] == [7, 8, 9, 10]
    lately.keep(11, "larger", 50)
    assert [number for number in range(12) if lately.get(number)] == [10, 11]
    lately.keep(12, "too large", 51)
    assert lately.get(12) is None
    assert lately.get(11) == "larger"


def test_what_is_kept_of_users_is_bounded_by_its_bytes(
    asked: tuple[Blend, list[Query]], monkeypatch: pytest.MonkeyPatch
) -> None:
    blend, queries = asked
    found = [blend._found(query) for query in queries]
    arrays = [(each.personal.own, each.personal.looked_up, *each.personal.steps) for each in found]
    least = [sum(array.nbytes for part in parts for array in _arrays_of(part)) for parts in arrays]
    assert all(each.nbytes > known for each, known in zip(found, least, strict=True)), "and opinions"
    monkeypatch.setattr("models.views.KEPT_BYTES", 3 * max(least))
    few = replace(blend)
    for query in queries:
        few.recommend(query)
    kept = [few._kept.found(few._asker(query)) is not None for query in queries]
    assert kept[-1]
    assert 1 <= sum(kept) <= 3
    for query in queries:
        assert_as_if_never_asked(few, query)


def _arrays_of(part: Any) -> list[np.ndarray]:
    return [part] if isinstance(part, np.ndarray) else [part.items, part.shares]
