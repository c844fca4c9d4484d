"""The blend of what counters, neighbours and self-attention say of the next track, as a player is answered by it.

Whatever any of them names is a candidate, some hundreds in all; a small ranker weighs what each says of it
(`models.ranking.listwise`). So self-attention looks at hundreds of tracks, not at all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    NextCandidates,
    NextTrackRecommender,
    Parameters,
    Parts,
    Positions,
    Scores,
    SessionQuery,
)
from models.ranking.listwise import ListwiseRanker
from models.retrieval.next_track.answers import UNKNOWN_LISTENING, HasOpinion, Heard, NextOpinion, allowed, answer
from models.retrieval.next_track.attention import SessionAttention
from models.retrieval.next_track.popular_tracks import PopularTracks

SPEAKERS = ("transition_counter", "co_listens", "session_knn", "recency_ease")
"""Recipes whose best become candidates, those of them that the release has."""
ATTENTION = SessionAttention.name
POPULAR = PopularTracks.name
MOST_EACH = 120
MOST_POPULAR = 200
_LEAST_SHARE = 1e-4


class Seen(NamedTuple):
    """What the ranker sees of one question.

    positions: int32[k], ascending, each once
    features:  float32[f, k]
    context:   float32[c]
    """

    positions: Positions
    features: NDArray[np.float32]
    context: NDArray[np.float32]


@dataclass(frozen=True)
class NextBlend:
    """Built by `fit_next_blend` or `from_parts`.

    speakers:  by name, in the order of their features
    attention: None where the release was fitted without torch
    chosen:    figures of the fit, as JSON
    """

    name: ClassVar[str] = "next_blend"
    speakers: Mapping[str, HasOpinion]
    popular: PopularTracks
    attention: SessionAttention | None
    ranker: ListwiseRanker
    chosen: Mapping[str, Any]

    @property
    def n_items(self) -> int:
        return self.popular.n_items

    def next(self, query: SessionQuery) -> NextCandidates:
        """What somebody names comes first; popular tracks fill up where that isn't enough."""
        heard = Heard.of(query, self.n_items)
        seen = self.seen(heard, query)
        found = answer(seen.positions, self.ranker.scores(seen.features, seen.context), query)
        if len(found.positions) < query.limit:
            found = self._filled_up(found, query)
        return found._replace(listening=self.expected_listening(heard, found.positions))

    def seen(self, heard: Heard, query: SessionQuery | None = None) -> Seen:
        """Candidates with all that is said of them; with a query only those that it allows."""
        opinions = [speaker.opinion(heard) for speaker in self.speakers.values()]
        positions = np.unique(np.concatenate([opinion.best(MOST_EACH).positions for opinion in opinions]))
        if query is not None:
            positions = positions[allowed(positions, query)]
        said = [feature for opinion in opinions for feature in _said(opinion, positions)]
        if self.attention is not None:
            said.append(self._attended(heard, positions))
        return Seen(positions, np.stack([*said, *self._known(heard, positions)]), self._situation(heard))

    def _attended(self, heard: Heard, positions: Positions) -> Scores:
        """float32[k]: logits of self-attention, 0 for the best."""
        if self.attention is None or len(heard.positions) == 0 or len(positions) == 0:
            return np.zeros(len(positions), np.float32)
        logits = self.attention.vectors[positions] @ self.attention.direction(self.attention.state(heard))
        return np.asarray(logits - logits.max(), np.float32)

    def _known(self, heard: Heard, positions: Positions) -> list[Scores]:
        """What is known of the tracks whoever speaks: popular ever, popular of late, how long ago it was heard here."""
        back = np.zeros(len(positions), np.float32)
        last = np.zeros(len(positions), np.float32)
        for ago, track in enumerate(heard.positions.tolist()[::-1]):
            place = int(np.searchsorted(positions, track))
            if place < len(positions) and positions[place] == track:
                back[place] = max(back[place], 1 / (1 + ago))
                last[place] = 1.0
        return [self._log_counts[0, positions], self._log_counts[1, positions], back, last]

    def _situation(self, heard: Heard) -> NDArray[np.float32]:
        n = len(heard.positions)
        if n == 0:
            return np.zeros(3, np.float32)
        repeated = 1 - len(set(heard.positions.tolist())) / n
        return np.array([np.log(n), self._log_counts[0, heard.positions[-1]], repeated], np.float32)

    @cached_property
    def _log_counts(self) -> Scores:
        return np.log1p(np.stack([self.popular.counts, self.popular.recent])).astype(np.float32)

    @cached_property
    def _most_popular(self) -> Positions:
        return np.argsort(-self.popular.counts, kind="stable").astype(np.int32)

    def _filled_up(self, found: NextCandidates, query: SessionQuery) -> NextCandidates:
        missing = query.limit - len(found.positions)
        depth = missing + len(found.positions) + len(query.excluded) + MOST_POPULAR
        others = self._most_popular[:depth] if query.eligible is None else self._most_popular
        others = others[allowed(others, query) & ~np.isin(others, found.positions)][:missing]
        below = np.float32(found.scores.min(initial=0) - 1) - np.arange(len(others), dtype=np.float32)
        return NextCandidates(
            np.concatenate([found.positions, others]), np.concatenate([found.scores, below]), found.listening
        )

    def expected_listening(self, heard: Heard, positions: Positions) -> Scores:
        """float32[k], 0–1: by self-attention where it learned from measured fractions, else one figure for all."""
        if self.attention is None or not self.attention.knows_listening or len(heard.positions) == 0:
            return np.full(len(positions), UNKNOWN_LISTENING, np.float32)
        return self.attention.expected_listening(self.attention.state(heard), positions)

    def parts(self) -> Parts:
        parameters = {
            "speakers": list(self.speakers), "attention": self.attention is not None, "chosen": dict(self.chosen)
        }  # fmt: skip
        return Parts(parameters, self.ranker.parts())

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays, fitted: Mapping[str, NextTrackRecommender]) -> Self:
        return cls.of(
            {name: fitted[name] for name in (*parameters["speakers"], POPULAR)}
            | ({ATTENTION: fitted[ATTENTION]} if parameters["attention"] else {}),
            ListwiseRanker.from_parts(arrays),
            parameters["chosen"],
        )

    @classmethod
    def of(cls, fitted: Mapping[str, Any], ranker: ListwiseRanker, chosen: Mapping[str, Any]) -> Self:
        """From fitted recommenders by name."""
        speakers = {name: fitted[name] for name in SPEAKERS if name in fitted}
        return cls(speakers, fitted[POPULAR], fitted.get(ATTENTION), ranker, chosen)


def _said(opinion: NextOpinion, positions: Positions) -> Sequence[Scores]:
    """float32[k] each: the logarithm of a track's share in all that is said, and how far it is behind the best."""
    scores = opinion.of(positions)
    total, most = float(opinion.scores.sum()), float(opinion.scores.max(initial=0))
    if total <= 0:
        return [np.full(len(positions), np.log(_LEAST_SHARE), np.float32), np.zeros(len(positions), np.float32)]
    return [np.log(scores / np.float32(total) + np.float32(_LEAST_SHARE)), scores / np.float32(most)]
