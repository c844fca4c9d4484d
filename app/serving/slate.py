"""From ranked candidates to a slate: boost → diversify → promote → cut. Pure.

Blocked, seen and excluded items never come this far: they are masked before retrieval, so that no
recommender wastes a place on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from app.catalog.rules import Promotion
from models.contracts import Reason


class Shown(NamedTuple):
    """One item of a slate. A tuple: each request makes fifty, and a frozen dataclass takes four times as long.

    row:    the item's row; `reason.seed` is a row here too
    score:  orders the unpromoted items of one slate
    source: the recommender that put it here, or `promotion`
    propensity: the probability of its place given the items above; None where it was not drawn
    """

    row: int
    score: float
    source: str
    promoted: bool
    reason: Reason
    propensity: float | None = None


@dataclass(frozen=True, slots=True)
class Run(Sequence[Shown]):
    """Unpromoted items of one source and reason, best first: what a slate is where nothing changes it.

    The items are made when they are looked at: of forty for later pages most never are.
    """

    rows: list[int]
    scores: list[float]
    source: str
    reason: Reason

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Shown]:
        return iter(items_of(self.rows, self.scores, self.source, self.reason))

    @overload
    def __getitem__(self, place: int) -> Shown: ...
    @overload
    def __getitem__(self, place: slice) -> Run: ...
    def __getitem__(self, place: int | slice) -> Shown | Run:
        if isinstance(place, slice):
            return Run(self.rows[place], self.scores[place], self.source, self.reason)
        return Shown(self.rows[place], self.scores[place], self.source, False, self.reason)


def items_of(rows: Iterable[int], scores: Iterable[float], source: str, reason: Reason) -> list[Shown]:
    """Unpromoted items of one source. Without Python's own steps for each: this is made fifty at a time."""
    fields = zip(rows, scores, repeat(source), repeat(False), repeat(reason), repeat(None))
    return list(map(tuple.__new__, repeat(Shown), fields))


def boosted(slate: Sequence[Shown], promotions: Sequence[Promotion]) -> Sequence[Shown]:
    """The slate with boosted items moved up: a boost multiplies an item's lead over the last candidate.

    Scores may be negative (log-odds, say), so it is the distance from the lowest that is multiplied.
    """
    boosts = {promotion.item_row: promotion.boost for promotion in promotions if promotion.boost is not None}
    if not boosts or boosts.keys().isdisjoint(shown.row for shown in slate):
        return slate
    lowest = min(shown.score for shown in slate)
    scored = [_boost(shown, boosts.get(shown.row), lowest) for shown in slate]
    return sorted(scored, key=lambda shown: -shown.score)


def _boost(shown: Shown, boost: float | None, lowest: float) -> Shown:
    if boost is None:
        return shown
    score = lowest + (shown.score - lowest) * boost
    return shown._replace(score=score, promoted=True, reason=Reason("promoted"))


def diversified(
    slate: Sequence[Shown], categories: Sequence[Sequence[str]], diversity: float, limit: int
) -> list[Shown]:
    """Maximal marginal relevance over categories (Carbonell & Goldstein 1998): `limit` items, then the rest.

    categories: those of each item of the slate; diversity: 0 keeps the order, 1 looks at categories alone
    The scores become the marginal relevance, which never rises from one item to the next.
    """
    if diversity <= 0 or len(slate) < 2:
        return list(slate)
    relevance = _unit_scale(np.array([shown.score for shown in slate]))
    similarity = _jaccard(categories)
    nearest = np.zeros(len(slate))
    left = np.ones(len(slate), np.bool_)
    picked: list[Shown] = []
    marginal = (1 - diversity) * relevance
    while left.any():
        if len(picked) < limit:
            marginal = (1 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(left, marginal, -np.inf)))
        picked.append(slate[best]._replace(score=float(marginal[best])))
        left[best] = False
        nearest = np.maximum(nearest, similarity[best])
    return picked


def with_pins(slate: Sequence[Shown], pins: Mapping[int, int], *, first_position: int = 1) -> Sequence[Shown]:
    """The slate with pinned rows at their positions (position → row), everything else moving down.

    A pin beyond the end of the slate goes to its end.
    """
    if not pins:
        return slate
    arranged = list(without_pinned(slate, pins))
    for position in sorted(pins):
        shown = Shown(pins[position], 0.0, "promotion", True, Reason("promoted"))
        arranged.insert(min(position - first_position, len(arranged)), shown)
    return arranged


def without_pinned(slate: Sequence[Shown], pins: Mapping[int, int]) -> Sequence[Shown]:
    """The organic items: what is left of the slate for the places that no pin takes."""
    if not pins:
        return slate
    pinned = set(pins.values())
    return [shown for shown in slate if shown.row not in pinned]


def pins_of(promotions: Sequence[Promotion], allowed: Sequence[int] | set[int]) -> dict[int, int]:
    """Position → row of the pinned items that this request allows; a taken position pushes on to the next."""
    pins: dict[int, int] = {}
    for promotion in promotions:
        if promotion.position is None or promotion.item_row not in allowed:
            continue
        position = promotion.position
        while position in pins:
            position += 1
        pins[position] = promotion.item_row
    return pins


def _unit_scale(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else np.ones_like(scores)


def _jaccard(categories: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """float64[k, k]: shared over united categories; items without any are unlike everything."""
    names = {name: i for i, name in enumerate(sorted({name for group in categories for name in group}))}
    membership = np.zeros((len(categories), len(names)))
    for item, group in enumerate(categories):
        membership[item, [names[name] for name in group]] = 1
    shared = membership @ membership.T
    sizes = membership.sum(1)
    united = sizes[:, None] + sizes[None, :] - shared
    similar: NDArray[np.float64] = np.divide(shared, united, out=np.zeros_like(shared), where=united > 0)
    return similar
