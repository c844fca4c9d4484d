"""What the blend knows of a question before it ranks, and what of that it keeps for the next one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import Indices, Positions, Query
from models.ranking.features import CoVisits
from models.retrieval.opinions import Opinion

MOST_USERS = 1_500
"""Users of whom it is kept what the sources think of them: about 30 kB each, in every process that answers."""


class View(NamedTuple):
    """What the ranker sees of a query.

    positions: of k items, each once, in any order
    features:  float32[f, k]
    context:   float32[c], the situation of the user
    co_visits: what the features of that name were counted from
    opinions:  by source, None where it has nothing to say
    places:    where in `positions` those stand that were answered with
    """

    positions: Indices
    features: NDArray[np.float32]
    context: NDArray[np.float32]
    co_visits: CoVisits | None
    opinions: Mapping[str, Opinion | None]
    places: Mapping[int, int] = {}


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

    @property
    def unasked(self) -> NDArray[np.float32]:
        """float32[sources, k]: surprises where no source has an opinion."""
        return np.zeros_like(self.usual.means)


class Asked(NamedTuple):
    """What the sources think of one user.

    front:     the leading items at the time
    positions: int64[k]: theirs, then those of the sources' nominees
    surprises: float32[sources, k], of these
    """

    front: Front
    opinions: Mapping[str, Opinion | None]
    positions: NDArray[np.int64]
    surprises: NDArray[np.float32]


class Kept:
    """What the next questions may need again.

    Each is one object, replaced as a whole: among threads one may be missed, never mixed up with another's.
    """

    __slots__ = ("_asked", "_front", "_view")

    def __init__(self) -> None:
        self._asked: dict[Hashable, Asked] = {}
        self._front: Front | None = None
        self._view: tuple[Query, View] | None = None

    def front(self, leading: Positions, make: Callable[[Positions], Front]) -> Front:
        """That of this very array."""
        front = self._front
        if front is None or front.given is not leading:
            front = self._front = make(leading)
        return front

    def asked(self, key: Hashable, front: Front, ask: Callable[[], Asked]) -> Asked:
        """What was found for this key and front, of the last MOST_USERS."""
        found = self._asked.get(key)
        if found is None or found.front is not front:
            if len(self._asked) >= MOST_USERS:
                # All at once: to look for the oldest among threads takes a lock.
                self._asked = {}
            found = self._asked[key] = ask()
        return found

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
