"""What comes next, by who was where of late: the co-visits of the session's last tracks. No model, and no memory of
order: what stands in until a release holds a fitted `NextTrackRecommender`.

The weights are those of a decayed item-transition counter (1/d for the track d steps back, ten steps), applied to
shares of an item's latest users instead of counts of transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.contracts import LiveSignals, NextCandidates, Positions, Scores, SessionQuery
from models.membership import is_among

STEPS = 10
LEAST_HEARD = 0.3
"""A track that was played for less says nothing for its neighbours (API.md: a negative listen)."""


@dataclass(frozen=True, slots=True)
class LiveCovisits:
    """n_items: positions that may be answered."""

    name: ClassVar[str] = "live_covisits"
    live: LiveSignals
    n_items: int

    def next(self, query: SessionQuery) -> NextCandidates:
        """Its predicted listening is 1 throughout: it can't tell, so nothing is held against a track."""
        positions, scores = self._scored(query)
        allowed = ~is_among(positions, query.excluded)
        if query.eligible is not None:
            allowed &= query.eligible[positions]
        positions, scores = positions[allowed], scores[allowed]
        best = np.lexsort((positions, -scores))[: query.limit]
        return NextCandidates(positions[best], scores[best], np.ones(len(best), np.float32))

    def _scored(self, query: SessionQuery) -> tuple[Positions, Scores]:
        """Each track that any of the session's last ones leads to, once."""
        found: list[Positions] = [np.empty(0, np.int32)]
        gains: list[Scores] = [np.empty(0, np.float32)]
        latest = zip(query.positions[: -STEPS - 1 : -1].tolist(), query.fractions[: -STEPS - 1 : -1], strict=True)
        for steps, (position, fraction) in enumerate(latest, 1):
            if fraction >= LEAST_HEARD:
                positions, shares = self.live.covisited(position)
                found.append(positions)
                gains.append(fraction * shares / steps)
        positions, place = np.unique(np.concatenate(found), return_inverse=True)
        scores = np.bincount(place, np.concatenate(gains), len(positions)).astype(np.float32)
        known = positions < self.n_items
        return positions[known].astype(np.int32), scores[known]
