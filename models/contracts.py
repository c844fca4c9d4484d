"""What a recommender is asked, what it answers, and the Protocols that every recommender keeps.

Items are *positions* here: 0 … n-1 in the fitted arrays, n … n+m-1 for items that arrived since (see
`Recommender.with_new_items`). Strings, database rows and users' names stay outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int32]
Indices = NDArray[np.integer[Any]]
"""Positions where they are only looked up, of whatever width."""
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]

Progress = Callable[[str, float], None]
"""Called while something is fitted, with what is being done and the fraction of it that is behind, 0–1."""


def unwatched(what: str, fraction: float) -> None:
    """The Progress of a fit that nobody watches."""


ReasonCode = Literal[
    "popular", "live", "cluster", "similar_to_liked", "taste", "next_in_session", "same", "other", "edge",
    "promoted", "fallback",
]  # fmt: skip


class Reason(NamedTuple):
    """Why an item is in the answer: a code and, where there is one, the item that led to it."""

    code: ReasonCode
    seed: int | None = None
    """Position of the item that this one follows from."""


@dataclass(frozen=True, slots=True)
class History:
    """What one user did: one entry per distinct item by its latest state, oldest first.

    positions:  int32[n]
    weights:    float32[n], strength of the feedback; negative where the user disliked the item
    signs:      int8[n], +1 positive, -1 negative, 0 neither (API.md says which kinds are which)
    timestamps: float64[n], unix seconds
    """

    positions: Positions
    weights: Scores
    signs: NDArray[np.int8]
    timestamps: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def liked(self) -> Positions:
        """Positions of the positive entries, oldest first."""
        return self.positions[self.signs > 0]

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> History:
        """The entries chosen by a mask, indices or a slice."""
        return History(self.positions[which], self.weights[which], self.signs[which], self.timestamps[which])

    @classmethod
    def empty(cls) -> History:
        return cls(np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.int8), np.empty(0, np.float64))


class Counted(NamedTuple):
    """What was counted of some items, and of all.

    counts: float32[half-lives, k], the masses of each item's events, decayed
    totals: float32[k], the same, undecayed
    masses: float64[half-lives], the sums over all items
    total:  the same, undecayed
    """

    counts: Scores
    totals: Scores
    masses: NDArray[np.float64]
    total: float


class Leading(NamedTuple):
    """Items that lead now, or may.

    chosen: int32[k], ascending, some time ago: the same array, for as long as that holds
    since:  int32[m], items outside of these that were met since
    """

    chosen: Positions
    since: Positions


class LiveSignals(Protocol):
    """What people do now, by position; every answer holds for the moment of asking."""

    @property
    def half_lives(self) -> tuple[float, ...]:
        """Seconds, ascending."""

    @property
    def newest(self) -> float:
        """Unix seconds of the newest event counted, -inf without any."""

    @property
    def version(self) -> int:
        """Another number whenever an answer may be another."""

    def counts(self, at: float) -> Scores:
        """float32[half-lives, n]: the masses of each item's events, decayed as of `at` (unix seconds)."""

    def totals(self) -> Scores:
        """float32[n]: the same, undecayed. n may differ from a recommender's number of items."""

    def counted(self, positions: Indices, at: float, n: int) -> Counted:
        """Of these positions alone, `counts` and `totals`; the sums are over positions 0 … n-1."""

    def leading(self) -> Leading:
        """The most chosen items by each half-life and of all time, some hundreds by each; and maybe more."""

    def covisited(self, position: int) -> tuple[Positions, Scores]:
        """Items that the item's latest users met of late too, and the share of those users, 0–1."""

    def covisited_each(self, positions: Sequence[int]) -> list[tuple[Positions, Scores]]:
        """`covisited` of each position; the very same arrays as before where they still hold."""

    def nearness(self, positions: Positions, among: Positions) -> Scores:
        """float32[k]: of each of `among`, each there once, the largest share that `covisited` has with any position."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question: which `limit` items should this user see?

    at:        unix seconds; "now" for decay and recency, never read from the clock by a recommender
    eligible:  bool[n + m] or None for all: what filters (category, kind, blocks, existence) leave over
    excluded:  int32[k], positions never to be returned (seen items, the caller's own exclusions)
    live:      what people do now; None where nobody counts (in a notebook, say)
    """

    limit: int
    at: float
    history: History = field(default_factory=History.empty)
    eligible: Mask | None = None
    excluded: Positions = field(default_factory=lambda: np.empty(0, np.int32))
    preferred_categories: tuple[str, ...] = ()
    live: LiveSignals | None = None


class Candidates(NamedTuple):
    """Items with finite scores, best first; ties by position, so that answers are reproducible."""

    positions: Positions
    scores: Scores


Parameters = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]


class Parts(NamedTuple):
    """A fitted recommender taken apart for storage: JSON values and arrays, nothing that needs pickle."""

    parameters: Parameters
    arrays: Arrays


@runtime_checkable
class Recommender(Protocol):
    """A fitted recommender. Immutable: everything it needs was learned before it was built."""

    @property
    def name(self) -> str:
        """The recipe's name."""

    @property
    def n_items(self) -> int:
        """Positions it can speak of: fitted items plus those given to `with_new_items`."""

    def scores(self, query: Query) -> Scores:
        """float32[n_items]: higher is better, -inf where it has no opinion. Filters are not applied."""

    def recommend(self, query: Query) -> Candidates:
        """At most `query.limit` items that the query allows, best first, no duplicates."""

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        """One reason for each position."""

    def with_new_items(self, content: Scores) -> Self:
        """A copy that also speaks of m items it was not fitted on.

        content: float32[m, d], rows of `ContentEncoder.transform`; replaces what an earlier call gave.
        """

    def parts(self) -> Parts:
        """What `artifacts.save` writes; the class's `from_parts` builds it again."""


@runtime_checkable
class SimilarItems(Recommender, Protocol):
    """A recommender that also knows which items are like one item."""

    def similar(self, position: int) -> Scores:
        """float32[n_items] similarities to the item, -inf where unknown and at the item itself."""


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """One question of a player: which tracks come next in this session, and how long will each be listened to?

    positions: int32[n], the tracks of the session, oldest first
    fractions: float32[n], how much of each was played, 0–1
    at:        unix seconds
    limit:     how many tracks to answer with
    history:   what the user did before; None where nobody knows
    excluded:  int32[k], positions never to be returned
    eligible:  bool[n + m] or None for all, as in Query
    """

    positions: Positions
    fractions: Scores
    at: float
    limit: int
    history: History | None = None
    excluded: Positions = field(default_factory=lambda: np.empty(0, np.int32))
    eligible: Mask | None = None


class NextCandidates(NamedTuple):
    """Tracks with finite scores, best first; ties by position.

    positions: int32[k]
    scores:    float32[k], higher is better; comparable within one answer only
    listening: float32[k], the fraction of each that will be played, predicted, 0–1
    """

    positions: Positions
    scores: Scores
    listening: Scores


@runtime_checkable
class NextTrackRecommender(Protocol):
    """A fitted recommender of what comes next in a session. Immutable."""

    @property
    def name(self) -> str:
        """The recipe's name."""

    @property
    def n_items(self) -> int:
        """Positions it can speak of."""

    def next(self, query: SessionQuery) -> NextCandidates:
        """At most `query.limit` tracks that the query allows, best first, no duplicates."""


@runtime_checkable
class LearnedNextTrack(NextTrackRecommender, Protocol):
    """One that was learned from sessions and travels in releases."""

    def parts(self) -> Parts:
        """What `artifacts.save` writes; the class's `from_parts` builds it again."""
