"""A log in time order as a test: who meets which item next, and what simple counters would have shown them.

A *case* is the first event ever between a user and an item. Whatever is tested sees the events before a case, and
names the items that the user might meet next; the rank of the one that they did meet is what counts. This measures
agreement with what people did under what they were shown then, not what they would have done with other lists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import Mask

Ranks = NDArray[np.int32]
"""From 1; 0 where the item is not among those that were looked at."""

DAY = 86_400.0
HALF_LIVES = {"6 h": 0.25, "1 d": 1.0, "3 d": 3.0, "7 d": 7.0, "14 d": 14.0}
WINDOWS = {"1 d": 1.0, "3 d": 3.0, "7 d": 7.0, "14 d": 14.0}
"""In days, by the name in the tables."""

ALL_TIME = "all-time popularity"
DECAYS = tuple(f"decayed popularity, {name}" for name in HALF_LIVES)
NEWEST_PUBLISHED = "newest first, by published_at"
NEWEST_SEEN = "newest first, by first event"
BASELINES = (ALL_TIME, *DECAYS, *(f"windowed popularity, {name}" for name in WINDOWS), NEWEST_PUBLISHED, NEWEST_SEEN)

_FIRST_DECAY, _FIRST_WINDOW = 1, 1 + len(HALF_LIVES)
_PUBLISHED, _SEEN = len(BASELINES) - 2, len(BASELINES) - 1

_LARGEST_EXPONENT = 512.0
"""Half-lives after which a decayed counter gets a new origin; a float64 overflows after 1,023."""


def unwatched(done: int, total: int) -> None:
    """The watcher of what nobody watches."""


@dataclass(frozen=True, slots=True)
class Log:
    """Events in time order, those of one moment in the order of the file.

    users, items: int32[n], positions; timestamps: float64[n], unix seconds
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    timestamps: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def first_meetings(self) -> Mask:
        """bool[n]: whether this user had not met this item before."""
        pairs = self.users.astype(np.int64) * (int(self.items.max(initial=0)) + 1) + self.items
        first = np.zeros(len(self), np.bool_)
        first[np.unique(pairs, return_index=True)[1]] = True
        return first

    def cut(self, share: float) -> int:
        """The number of events by which `share` (0–1) of all first meetings is behind, exactly.

        Raises ValueError where nothing would be left on one side.
        """
        behind = np.cumsum(self.first_meetings)
        total = int(behind[-1]) if len(self) else 0
        earlier = total - round(total * (1 - share))
        if not 0 < earlier < total:
            raise ValueError(f"a share of {share} leaves {earlier} of {total} first meetings before the cut")
        return int(np.searchsorted(behind, earlier)) + 1


class Feed(NamedTuple):
    """How far what is tested lags behind the events that it is asked about.

    lag: events that it does not know of yet, at least; it learns of them `batch` at a time
    """

    lag: int
    batch: int

    @classmethod
    def behind(cls, lag: int) -> Feed:
        """With a lag the events come in batches of a tenth of it, so it is up to a tenth longer."""
        return cls(lag, max(1, lag // 10))

    def known(self, event: int) -> int:
        """How many of the events after the cut are known when the one with this number, from 0, is asked about."""
        return max(0, event - self.lag) // self.batch * self.batch


class Baselines:
    """Counters that learn from the stream, event by event: what any service should be better than.

    What counts is the first meeting of a user and an item: those who come back add nothing (on Deskdrop a decay of
    six hours has an NDCG@10 of 0.493 so, 0.488 where they count once a day, and 0.483 where each event counts).
    """

    def __init__(self, n_items: int, published: NDArray[np.float64]) -> None:
        """published: float64[n_items], unix seconds, NaN where unknown."""
        self._scores = np.zeros((len(BASELINES), n_items))
        self._scores[_PUBLISHED:] = -np.inf
        self._origins = np.full(len(HALF_LIVES), -np.inf)
        self._half_lives = np.array(list(HALF_LIVES.values())) * DAY
        self._windows = [(days * DAY, deque[tuple[float, int]]()) for days in WINDOWS.values()]
        self._met: dict[int, list[int]] = {}
        self._published = published
        known = np.flatnonzero(~np.isnan(published))
        self._to_publish = deque(sorted(zip(published[known].tolist(), known.tolist(), strict=True)))

    def fold(self, user: int, item: int, timestamp: float) -> None:
        """Learn from one event; no event is older than the one before it."""
        met = self._met.setdefault(user, [])
        if item in met:
            return
        met.append(item)
        self._scores[0, item] += 1
        self._decay(item, timestamp)
        for row, (_, held) in enumerate(self._windows, _FIRST_WINDOW):
            held.append((timestamp, item))
            self._scores[row, item] += 1
        if self._scores[_SEEN, item] == -np.inf:
            self._scores[_SEEN, item] = timestamp
            if np.isnan(self._published[item]):
                self._scores[_PUBLISHED, item] = timestamp

    def ranks(self, user: int, item: int, at: float) -> Ranks:
        """int32[baselines]: where each would have put the item, among all that the user has not met.

        at: unix seconds, not before the newest event folded. Equals go by all-time popularity, then by position.
        """
        self._bring_to(at)
        own = self._scores[:, item][:, None]
        popular = self._scores[0]
        wins_ties = popular > popular[item]
        wins_ties[:item] |= popular[:item] == popular[item]
        ahead = self._scores > own
        ahead |= (self._scores == own) & wins_ties
        ahead[:, self._met.get(user, [])] = False
        return np.asarray(np.count_nonzero(ahead, axis=1) + 1, np.int32)

    def _decay(self, item: int, timestamp: float) -> None:
        """Forward decay (Cormode et al. 2009): what comes later weighs more, so that nothing need ever be aged."""
        decays = self._scores[_FIRST_DECAY:_FIRST_WINDOW]
        exponents = (timestamp - self._origins) / self._half_lives
        for row in np.flatnonzero(exponents > _LARGEST_EXPONENT):
            decays[row] *= np.exp2(-exponents[row])
            self._origins[row], exponents[row] = timestamp, 0.0
        decays[:, item] += np.exp2(exponents)

    def _bring_to(self, at: float) -> None:
        for row, (seconds, held) in enumerate(self._windows, _FIRST_WINDOW):
            while held and held[0][0] < at - seconds:
                self._scores[row, held.popleft()[1]] -= 1
        while self._to_publish and self._to_publish[0][0] <= at:
            time, item = self._to_publish.popleft()
            self._scores[_PUBLISHED, item] = time


def baseline_ranks(
    log: Log,
    cut: int,
    *,
    feed: Feed,
    published: NDArray[np.float64],
    watch: Callable[[int, int], None] = unwatched,
) -> dict[str, Ranks]:
    """The rank of each case's item after the cut, by baseline, each learning from the same feed as the service.

    published: float64[n_items], unix seconds, NaN where unknown; as long as there are items, met or not
    watch:     gets how many events are behind, and how many there are
    """
    baselines, first = Baselines(len(published), published), log.first_meetings
    users, items, timestamps = log.users.tolist(), log.items.tolist(), log.timestamps.tolist()
    found, folded = [], 0
    for event in range(cut, len(log)):
        for known in range(folded, cut + feed.known(event - cut)):
            baselines.fold(users[known], items[known], timestamps[known])
            folded = known + 1
        if first[event]:
            found.append(baselines.ranks(users[event], items[event], timestamps[event]))
        if event % 500 == 0:
            watch(event - cut, len(log) - cut)
    watch(len(log) - cut, len(log) - cut)
    by_baseline = np.array(found, np.int32).reshape(-1, len(BASELINES)).T
    return dict(zip(BASELINES, by_baseline, strict=True))


def hits_at(k: int, ranks: Ranks) -> NDArray[np.float64]:
    """float64[cases]: 1 where the item is among the first k; their mean is HR@k."""
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def ndcg_at(k: int, ranks: Ranks) -> NDArray[np.float64]:
    """float64[cases]: 1 / log2(rank + 1) where the item is among the first k: NDCG with one relevant item."""
    return hits_at(k, ranks) / np.log2(np.maximum(ranks, 1) + 1.0)
