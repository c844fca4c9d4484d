"""What comes next, by who was where of late: the co-visits of the session's last tracks. No model, and no memory of
order: what stands in until a release holds a fitted `NextTrackRecommender`.

The weights are those of a decayed item-transition counter (1/d for the track d steps back, ten steps), applied to
shares of an item's latest users instead of counts of transitions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from models.contracts import LiveSignals, NextCandidates, Scores, SessionQuery

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
        scores = self._scores(query)
        allowed = np.zeros(self.n_items, np.bool_)
        allowed[: self.n_items] = True if query.eligible is None else query.eligible[: self.n_items]
        allowed[query.excluded[query.excluded < self.n_items]] = False
        found = np.flatnonzero((scores > 0) & allowed)
        best = found[np.argsort(-scores[found], kind="stable")][: query.limit]
        return NextCandidates(best.astype(np.int32), scores[best], np.ones(len(best), np.float32))

    def _scores(self, query: SessionQuery) -> Scores:
        scores = np.zeros(self.n_items, np.float32)
        latest = zip(query.positions[: -STEPS - 1 : -1].tolist(), query.fractions[: -STEPS - 1 : -1], strict=True)
        for steps, (position, fraction) in enumerate(latest, 1):
            if fraction >= LEAST_HEARD:
                positions, shares = self.live.covisited(position)
                known = positions < self.n_items
                scores[positions[known]] += fraction * shares[known] / steps
        return scores
