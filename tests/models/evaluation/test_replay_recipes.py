"""A recommender alone over a replay: what it is told, when, and which places its answers get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pytest

from models.contracts import Candidates, Parts, Positions, Query, Reason, Recommender, Scores
from models.data.dataset import Interactions
from models.evaluation.replay import Feed, Ranks
from models.evaluation.replay_recipes import Stream, recipe_ranks

DAY = 86_400.0


@dataclass
class Listener:
    """Shows all items that the user has not met, highest position first, and remembers what it was asked.

    counted: the undecayed live counts at each question, which the live state itself forgets
    """

    n_items: int
    asked: list[Query] = field(default_factory=list)
    counted: list[list[float]] = field(default_factory=list)
    name: str = "listener"

    def recommend(self, query: Query) -> Candidates:
        self.asked.append(query)
        assert query.live is not None
        self.counted.append(query.live.totals().tolist())
        left = [item for item in reversed(range(self.n_items)) if item not in query.excluded]
        positions = np.array(left[: query.limit], np.int32)
        return Candidates(positions, -np.arange(len(positions), dtype=np.float32))

    def scores(self, query: Query) -> Scores:
        raise NotImplementedError

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        raise NotImplementedError

    def with_new_items(self, content: Scores) -> Self:
        raise NotImplementedError

    def parts(self) -> Parts:
        raise NotImplementedError


def stream_of(*events: tuple[int, int], cut: int, n_fitted: int, cases: list[int] | None = None) -> Stream:
    """From (user, item), one a day; each event weighs 1 and is positive."""
    n = len(events)
    users, items = (np.array(column, np.int32) for column in zip(*events, strict=True))
    interactions = Interactions(
        users,
        items,
        np.ones(n, np.float32),
        np.ones(n, np.int8),
        np.full(n, np.nan, np.float32),
        np.arange(n, dtype=np.float64) * DAY,
    )
    is_case = np.isin(np.arange(n), range(n) if cases is None else cases)
    return Stream(interactions, np.full(n, 2.0), is_case, cut, n_fitted)


def asked_of(stream: Stream, *, lag: int = 0, k: int = 2) -> tuple[Ranks, dict[int, Listener]]:
    """Ranks, and the listeners by how many items they speak of."""
    listeners: dict[int, Listener] = {}

    def speakers(known: int) -> Mapping[str, Recommender]:
        return {"listener": listeners.setdefault(known, Listener(known))}

    return recipe_ranks(stream, speakers, feed=Feed.behind(lag), k=k, ranked=4)["listener"], listeners


def test_the_place_of_the_item_counts_as_far_as_k() -> None:
    ranks, _ = asked_of(stream_of((0, 0), (1, 3), (2, 2), (3, 1), cut=1, n_fitted=4))

    assert ranks.tolist() == [1, 2, 0]


def test_what_the_user_met_and_when_is_in_the_question() -> None:
    stream = stream_of((0, 2), (0, 1), (1, 0), (0, 2), (0, 3), cut=2, n_fitted=4)
    _, listeners = asked_of(stream)

    of_stranger, of_second, of_last = listeners[4].asked
    assert len(of_stranger.history) == 0
    assert of_second.history.positions.tolist() == [2, 1]
    assert of_last.history.positions.tolist() == [1, 2]  # by the latest state of each, oldest first
    assert of_last.history.timestamps.tolist() == [1 * DAY, 3 * DAY]
    assert of_last.excluded.tolist() == [1, 2]
    assert of_last.at == 4 * DAY
    assert of_last.limit == 4


def test_everybodys_events_are_counted_by_then() -> None:
    _, listeners = asked_of(stream_of((0, 0), (1, 1), (2, 1), (3, 0), cut=1, n_fitted=2))

    assert [sum(counts) for counts in listeners[2].counted] == [2, 4, 6]
    assert listeners[2].counted[2] == [2, 4]


def test_with_a_lag_they_are_not_yet() -> None:
    _, listeners = asked_of(stream_of((0, 0), (1, 1), (2, 1), (3, 0), cut=1, n_fitted=2), lag=2)

    assert [sum(counts) for counts in listeners[2].counted] == [2, 2, 2]


def test_an_item_is_spoken_of_once_somebody_met_it() -> None:
    stream = stream_of((0, 0), (1, 2), (2, 2), (3, 3), (4, 2), cut=1, n_fitted=2)
    ranks, listeners = asked_of(stream)

    assert sorted(listeners) == [2, 3, 4]
    assert ranks.tolist() == [0, 1, 0, 2]


def test_only_cases_are_asked_about() -> None:
    ranks, listeners = asked_of(stream_of((0, 0), (1, 1), (1, 1), (2, 0), cut=1, n_fitted=2, cases=[1, 3]))

    assert len(ranks) == len(listeners[2].asked) == 2


def test_an_item_that_the_service_never_came_to_know_is_a_miss() -> None:
    ranks, _ = asked_of(stream_of((0, 0), (1, 1), (2, -1), cut=1, n_fitted=2), lag=2)

    assert ranks.tolist() == [1, 0]


def test_a_log_in_the_wrong_order_is_refused() -> None:
    stream = stream_of((0, 0), (1, 1), (2, 0), cut=2, n_fitted=2)
    stream.events.timestamps[:] = [5 * DAY, 4 * DAY, 6 * DAY]

    with pytest.raises(ValueError, match="time order"):
        asked_of(stream)
