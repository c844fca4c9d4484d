"""A dataset lived through again: at each moment what was known then, and what the user chose next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import History, Query
from models.data.dataset import Dataset, Interactions, first_per_pair
from models.live.state import DayLedger, LiveState

LONGEST_HISTORY = 200


class Choice(NamedTuple):
    """A user's question as it stood when they chose, and the position that they chose.

    The query's live signals are of that moment only: read them before asking for the next choice.
    """

    query: Query
    chosen: int


def live_state_of(dataset: Dataset) -> LiveState:
    """The live state at the end of the dataset."""
    state = LiveState(n_items=dataset.n_items)
    _fold(state, DayLedger(), dataset.interactions)
    return state


def choices_of(dataset: Dataset, start: int, stop: int, *, most: int) -> Iterator[Choice]:
    """The choices among interactions start … stop-1, in time order; at most `most` of them, evenly spread.

    A choice is a user's first meeting with an item that they did not dislike.
    """
    interactions = dataset.interactions
    is_first = np.zeros(len(interactions), np.bool_)
    is_first[first_per_pair(interactions)] = True
    found = start + np.flatnonzero(is_first[start:stop] & (interactions.signs[start:stop] >= 0))
    taken = found[np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(np.int64))]
    pasts = _Pasts.of(dataset)
    state, ledger, folded = LiveState(n_items=dataset.n_items), DayLedger(), 0
    for index in taken.tolist():
        _fold(state, ledger, interactions.take(slice(folded, index)))
        folded = index
        yield Choice(pasts.query(index, state), int(interactions.items[index]))


class _Pasts(NamedTuple):
    """The interactions of each user, in time order.

    order:  int64[n], indices sorted by user, then time
    place:  int64[n], where each index stands in `order`
    starts: int64[users + 1], where each user's begin
    """

    interactions: Interactions
    order: NDArray[np.int64]
    place: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset) -> _Pasts:
        users = dataset.interactions.users
        order = np.argsort(users, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return cls(dataset.interactions, order, place, np.searchsorted(users[order], np.arange(dataset.n_users + 1)))

    def query(self, index: int, state: LiveState) -> Query:
        """What the user of an interaction would have asked just before it."""
        user = int(self.interactions.users[index])
        past = self.interactions.take(self.order[self.starts[user] : self.place[index]])
        history = _latest_states(past)
        return Query(
            limit=0,
            at=float(self.interactions.timestamps[index]),
            history=history.take(slice(-LONGEST_HISTORY, None)),
            excluded=history.positions,
            live=state,
        )


def _latest_states(past: Interactions) -> History:
    _, from_end = np.unique(past.items[::-1], return_index=True)
    newest = np.sort(len(past) - 1 - from_end)
    return History(past.items[newest], past.weights[newest], past.signs[newest], past.timestamps[newest])


def _fold(state: LiveState, ledger: DayLedger, events: Interactions) -> None:
    masses = np.maximum(1.0 + events.weights.astype(np.float64), 0.0)
    state.fold(ledger.changes(events.users, events.items, masses, events.timestamps))
