"""What the blend knows of a question before it ranks, and what of that it keeps for the next one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from models.contracts import History, Indices, LiveSignals, Mask, Positions, Query, Reason
from models.membership import is_among
from models.ranking.features import Step
from models.ranking.listwise import SituatedRanker
from models.retrieval.opinions import Opinion

Key = TypeVar("Key")
Value = TypeVar("Value")
CO_VISITS_SPEAK = 1
"""By this number co-visits stand among those who give reasons; the live counts are 0, then come the sources."""
MOST_USERS = 1_500
"""So many users' candidates are kept in every process that answers, and no more than KEPT_BYTES of them."""
KEPT_BYTES = 128 * 2**20
"""A user takes some 50 kB, and twice that where events come in, for then nobody shares their co-visits any more. Whose
latest items have met everybody takes 250 kB: of those 500 find room."""
NAMES_BYTES = 32 * 2**20
"""Of histories, and of the names that they have here."""
_OBJECT_BYTES, _REASON_BYTES = 4_000, 250
"""Beside the arrays: some thirty objects for each user, and each reason that was given."""


class Personal(NamedTuple):
    """Some items, and what of their features is the user's own.

    looked_up: int64[k + ≤ 3], the items, each once; then the latest of the history, see `latest_known`
    own:       float32[2 + sources + 1, k]: co-visits, then surprises, then ones, the ranker's constant
    steps:     what the co-visits were counted from
    opinions:  by source, None where it has nothing to say
    reasons:   that were given before, by who spoke and position; None where it was none
    """

    looked_up: NDArray[np.int64]
    own: NDArray[np.float32]
    steps: tuple[Step, ...]
    opinions: Mapping[str, Opinion | None]
    reasons: dict[tuple[int, int], Reason | None]

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64[k], of the items."""
        return self.looked_up[: self.own.shape[1]]

    @property
    def latest(self) -> NDArray[np.int64]:
        """int64[≤ 3], of the history."""
        return self.looked_up[self.own.shape[1] :]

    @property
    def nbytes(self) -> int:
        """Of its arrays; those of the steps count whole, though others may share them."""
        steps = sum([step.items.nbytes + step.shares.nbytes for step in self.steps])
        opinions = sum([opinion.nbytes for opinion in self.opinions.values() if opinion is not None])
        return self.looked_up.nbytes + self.own.nbytes + steps + opinions

    def reasons_of_sources(self) -> dict[tuple[int, int], Reason | None]:
        """Those that hold for other steps, too."""
        # Another thread may be adding some.
        return {said: reason for said, reason in self.reasons.copy().items() if said[0] != CO_VISITS_SPEAK}


class View(NamedTuple):
    """What the ranker sees of a query.

    features: float32[f + 1, k], the last row ones
    context:  float32[c], the situation of the user
    ranker:   in this situation
    places:   where among the positions those stand that were answered with
    """

    personal: Personal
    features: NDArray[np.float32]
    context: NDArray[np.float32]
    ranker: SituatedRanker
    places: Mapping[int, int] = {}

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64[k], of the features' columns."""
        return self.personal.positions


class Usual(NamedTuple):
    """float32[sources, n] each: what is usual of every source, its offsets taken off, and 1 / the deviation."""

    means: NDArray[np.float32]
    scales: NDArray[np.float32]

    def of(self, positions: Indices) -> Usual:
        """float32[sources, k] each: of these items."""
        return Usual(self.means.take(positions, axis=1), self.scales.take(positions, axis=1))


class Front(NamedTuple):
    """Some items, ascending, and what of them is the same for all users.

    given:     as they were given, the leading ones by the live signals
    positions: int64[k], those of them that the blend speaks of
    rows:      by source, what its opinions need of these
    usual:     of these
    """

    given: Indices
    positions: NDArray[np.int64]
    rows: Mapping[str, NDArray[Any]]
    usual: Usual


class Allowed(NamedTuple):
    """Where among some positions those stand that these very filters leave over.

    A filter's mask is as long as the catalogue, and most are made for one question: it is known here, not kept.

    places: int64[k]
    """

    eligible: ref[Mask]
    excluded: ref[Positions]
    places: NDArray[np.int64]

    def is_for(self, query: Query) -> bool:
        """Whether it is about the very filters of the query."""
        is_same = query.eligible is not None and self.eligible() is query.eligible
        return is_same and self.excluded() is query.excluded

    def is_for_another_mask(self, query: Query) -> bool:
        """Whether it may be asked for again though it is not about this mask: its own, that of all, is still there."""
        mask = self.eligible()
        return mask is not None and mask is not query.eligible


class Found(NamedTuple):
    """One user's candidates, and what they were found from.

    The items of `personal` ascend, whatever came when: so an answer is the same to the last bit as if nothing was kept.

    nominees:      the best of the sources
    leading, since: what led then
    live, version: the signals, and as of when they were last found to say what stands here
    nbytes:        of `personal`
    allowed:       of the candidates, by the filters that were asked for last
    """

    personal: Personal
    nominees: Positions
    leading: Indices
    since: Positions
    live: LiveSignals | None
    version: int
    nbytes: int
    allowed: Allowed | None = None

    def is_from(self, front: Front, steps: tuple[Step, ...]) -> bool:
        """Whether these are the very arrays that it was found from: the signals give the same ones while they hold."""
        if self.leading is not front.given:
            return False
        return all(a.items is b.items for a, b in zip(self.personal.steps, steps, strict=True))

    def has(self, since: Positions) -> bool:
        """Whether all of these are candidates: as long as the same lead, these only become more."""
        return self.since is since or bool(is_among(since, self.personal.positions).all())


class Asker(NamedTuple):
    """What the sources are told of a user, and as of when.

    hour: whole hours of unix time
    past: see `Kept.name_of`
    """

    hour: float
    preferred_categories: tuple[str, ...]
    past: bytes


class LatelyUsed(Generic[Key, Value]):
    """What was kept or asked for last: so many, and so many bytes of them. May be asked by many threads."""

    __slots__ = ("_bytes", "_kept", "_lock", "_most", "_most_bytes")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def keep(self, key: Key, value: Value, nbytes: int) -> None:
        """Instead of what was kept under this key. What takes more than half of the room is not kept."""
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._bytes -= before
            if nbytes > self._most_bytes // 2:
                return
            self._kept[key] = value, nbytes
            self._bytes += nbytes
            while self._bytes > self._most_bytes or len(self._kept) > self._most:
                self._bytes -= self._kept.popitem(last=False)[1][1]


class Kept:
    """What the next questions may need again. May be asked by many threads: what one keeps another may miss, but it is
    never mixed up with anything else."""

    __slots__ = ("_found", "_front", "_names", "_view")

    def __init__(self) -> None:
        self._names = LatelyUsed[int, tuple[History, bytes]](MOST_USERS, NAMES_BYTES)
        self._found = LatelyUsed[Asker, Found](MOST_USERS, KEPT_BYTES)
        self._front: Front | None = None
        self._view: tuple[Query, View] | None = None

    def name_of(self, history: History) -> bytes:
        """The same for all histories that hold the same."""
        known = self._names.get(id(history))
        if known is None or known[0] is not history:
            columns = history.positions, history.weights, history.signs, history.timestamps
            known = history, b"".join([column.tobytes() for column in columns])
            # The name holds as many bytes as the history.
            self._names.keep(id(history), known, 2 * len(known[1]) + _OBJECT_BYTES)
        return known[1]

    def front(self, leading: Positions, make: Callable[[Positions], Front]) -> Front:
        """That of this very array."""
        front = self._front
        if front is None or front.given is not leading:
            front = self._front = make(leading)
        return front

    def found(self, asker: Asker) -> Found | None:
        """What was found for just this."""
        return self._found.get(asker)

    def keep_found(self, asker: Asker, found: Found) -> None:
        arrays = found.nbytes + 2 * len(asker.past) + (0 if found.allowed is None else found.allowed.places.nbytes)
        self._found.keep(asker, found, arrays + len(found.personal.reasons) * _REASON_BYTES + _OBJECT_BYTES)

    def keep(self, query: Query, view: View) -> None:
        self._view = query, view

    def view_of(self, query: Query) -> View | None:
        """That of a query about the same user at the same time; filters play no part in it."""
        if (kept := self._view) is None:
            return None
        asked, view = kept
        is_same = (
            asked.history is query.history
            and asked.live is query.live
            and asked.at == query.at
            and asked.preferred_categories == query.preferred_categories
        )
        return view if is_same else None
