"""Each recommender of a release alone over the cases of a replay: no HTTP, no routes, nobody who fills up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.contracts import History, Mask, Query, Recommender
from models.data.dataset import Interactions
from models.evaluation.replay import Feed, Ranks, unwatched
from models.live.state import DayLedger, LiveState

LONGEST_HISTORY = 200

Speakers = Callable[[int], Mapping[str, Recommender]]
"""The release's recommenders by name, speaking of this many positions: those fitted and the first that came since."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A log as a release sees it.

    events:   in time order; items in the order in which the service came to know them, -1 where it never did
    masses:   float64[n], what each event adds to the live counts
    is_case:  bool[n]
    cut:      how many events come before the replay
    n_fitted: positions that the release was fitted on
    """

    events: Interactions
    masses: NDArray[np.float64]
    is_case: Mask
    cut: int
    n_fitted: int


def recipe_ranks(
    stream: Stream,
    speakers: Speakers,
    *,
    feed: Feed,
    k: int,
    ranked: int,
    watch: Callable[[int, int], None] = unwatched,
) -> dict[str, Ranks]:
    """The rank of each case's item after the cut, by recommender; 0 where it is not among the first k.

    ranked: items that each is asked for, k at least: a recommender in stages may choose more carefully among more
    watch:  gets how many events are behind, and how many there are
    """
    known, past = stream.n_fitted, _Past()
    past.learn(stream, 0, stream.cut)
    recommenders = speakers(known)
    found: dict[str, list[int]] = {name: [] for name in recommenders}
    total, folded = len(stream.events), stream.cut
    for event in range(stream.cut, total):
        if (until := stream.cut + feed.known(event - stream.cut)) > folded:
            past.learn(stream, folded, until)
            newest = int(stream.events.items[folded:until].max()) + 1
            folded = until
            if newest > known:
                known, recommenders = newest, speakers(newest)
        if stream.is_case[event]:
            query = past.query(int(stream.events.users[event]), float(stream.events.timestamps[event]), ranked)
            for name, recommender in recommenders.items():
                shown = recommender.recommend(query).positions[:k]
                found[name].append(_rank(shown, int(stream.events.items[event])))
        if event % 200 == 0:
            watch(event - stream.cut, total - stream.cut)
    watch(total - stream.cut, total - stream.cut)
    return {name: np.array(ranks, np.int32) for name, ranks in found.items()}


def _rank(shown: NDArray[np.int32], item: int) -> int:
    """From 1; 0 where it is not shown, as is an item that nobody knows yet."""
    places = np.flatnonzero(shown == item)
    return int(places[0]) + 1 if len(places) and item >= 0 else 0


class _Past:
    """What users did and what everybody does, as far as it is known: the same that the service keeps."""

    def __init__(self) -> None:
        self._live = LiveState()
        self._ledger = DayLedger()
        self._states: dict[int, dict[int, tuple[float, int, float]]] = {}

    def learn(self, stream: Stream, first: int, last: int) -> None:
        """Take in the events first … last-1."""
        events = stream.events.take(slice(first, last))
        self._live.fold(self._ledger.changes(events.users, events.items, stream.masses[first:last], events.timestamps))
        columns = (events.users, events.items, events.weights, events.signs, events.timestamps)
        for user, item, weight, sign, timestamp in zip(*(column.tolist() for column in columns), strict=True):
            states = self._states.setdefault(user, {})
            states.pop(item, None)  # the latest state of an item stands last
            states[item] = weight, sign, timestamp

    def query(self, user: int, at: float, limit: int) -> Query:
        states = self._states.get(user, {})
        positions = np.fromiter(states, np.int32, len(states))
        weights, signs, timestamps = zip(*states.values(), strict=True) if states else ((), (), ())
        history = History(
            positions, np.array(weights, np.float32), np.array(signs, np.int8), np.array(timestamps, np.float64)
        )
        newest = history.take(slice(-LONGEST_HISTORY, None))
        return Query(limit=limit, at=at, history=newest, excluded=positions, live=self._live)
