"""The blend of what counters, neighbours and self-attention say of the next track, as a player is answered by it.

Whatever any of them names is a candidate, some hundreds in all; a small ranker weighs what each says of it
(`models.ranking.listwise`). So self-attention looks at hundreds of tracks, not at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from models.retrieval.next_track.answers import (
    LONGEST,
    UNKNOWN_LISTENING,
    Heard,
    MakesClaims,
    Tally,
    allowed,
    best_of,
)
from models.retrieval.next_track.attention import SessionAttention
from models.retrieval.next_track.popular_tracks import PopularTracks

SPEAKERS = ("transition_counter", "co_listens", "session_knn", "recency_ease")
"""Recipes whose best become candidates, those of them that the release has."""
ATTENTION = SessionAttention.name
POPULAR = PopularTracks.name
MOST_EACH = 120
MOST_POPULAR = 200
_LEAST_SHARE = 1e-4
_TINY = 1e-30
_LATENESS = (1 / np.arange(LONGEST, 0, -1)).astype(np.float32)
"""By place in a session, the latest last: 1 over how many tracks ago it was heard, itself counted."""


class Seen(NamedTuple):
    """What the ranker sees of one question.

    positions: int32[k], ascending, each once
    features:  float32[f, k]
    context:   float32[c]
    state:     float32[d], of self-attention; None without it or without a session
    """

    positions: Positions
    features: NDArray[np.float32]
    context: NDArray[np.float32]
    state: Scores | None


@dataclass(frozen=True)
class NextBlend:
    """Built by `fit_next_blend` or `from_parts`.

    speakers:  by name, in the order of their features
    attention: None where the release was fitted without torch
    chosen:    figures of the fit, as JSON
    """

    name: ClassVar[str] = "next_blend"
    speakers: Mapping[str, MakesClaims]
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
        found = best_of(seen.positions, self.ranker.scores(seen.features, seen.context), query.limit)
        if len(found.positions) < query.limit:
            found = self._filled_up(found, query)
        return found._replace(listening=self._expected_listening(seen.state, found.positions))

    def seen(self, heard: Heard, query: SessionQuery | None = None) -> Seen:
        """Candidates with all that is said of them; with a query only those that it allows."""
        said = Tally.of([speaker.claims(heard) for speaker in self.speakers.values()], self.n_items)
        best = said.best(MOST_EACH)
        positions = said.positions[best]
        if query is not None:
            keep = allowed(positions, query)
            best, positions = best[keep], positions[keep]
        state = None if self.attention is None or len(heard.positions) == 0 else self.attention.state(heard)
        features = [_said(said, best), self._attended(state, positions), self._known(heard, positions)]
        return Seen(positions, np.concatenate(features), self._situation(heard), state)

    def _attended(self, state: Scores | None, positions: Positions) -> NDArray[np.float32]:
        """float32[1, k]: logits of self-attention, 0 for the best; float32[0, k] in a blend without it."""
        if self.attention is None or state is None or len(positions) == 0:
            return np.zeros((int(self.attention is not None), len(positions)), np.float32)
        logits = self.attention.vectors.take(positions, axis=0).dot(self.attention.direction(state))
        return np.asarray(logits - logits.max(), np.float32)[None]

    def _known(self, heard: Heard, positions: Positions) -> NDArray[np.float32]:
        """float32[4, k]: popular ever, popular of late, how lately it was heard in this session, and whether."""
        known = np.zeros((4, len(positions)), np.float32)
        known[:2] = self._log_counts.take(positions, axis=1)
        if len(positions):
            places = np.minimum(positions.searchsorted(heard.positions), len(positions) - 1)
            is_candidate = positions[places] == heard.positions
            # Of a track that was heard twice the later time is written last, and stays.
            again = places[is_candidate]
            known[2, again], known[3, again] = _LATENESS[LONGEST - len(places) :][is_candidate], 1
        return known

    def _situation(self, heard: Heard) -> NDArray[np.float32]:
        n = len(heard.positions)
        if n == 0:
            return np.zeros(3, np.float32)
        repeated = 1 - len(set(heard.positions.tolist())) / n
        return np.array([math.log(n), self._log_counts[0, heard.positions[-1]], repeated], np.float32)

    @cached_property
    def _log_counts(self) -> NDArray[np.float32]:
        """float32[2, n]"""
        return np.log1p(np.stack([self.popular.counts, self.popular.recent])).astype(np.float32)

    @cached_property
    def _most_popular(self) -> Positions:
        return np.argsort(-self.popular.counts, kind="stable").astype(np.int32)

    def _filled_up(self, found: NextCandidates, query: SessionQuery) -> NextCandidates:
        missing = query.limit - len(found.positions)
        beside = replace(query, excluded=np.concatenate([query.excluded, found.positions]))
        depth, others = MOST_POPULAR, self._most_popular[:0]
        while len(others) < missing and depth < 4 * (MOST_POPULAR + self.n_items):
            others = self._most_popular[:depth]
            others = others[allowed(others, beside)][:missing]
            depth *= 4
        below = np.float32(found.scores.min(initial=0) - 1) - np.arange(len(others), dtype=np.float32)
        return NextCandidates(
            np.concatenate([found.positions, others]), np.concatenate([found.scores, below]), found.listening
        )

    def _expected_listening(self, state: Scores | None, positions: Positions) -> Scores:
        """float32[k], 0–1: by self-attention where it learned from measured fractions, else one figure for all."""
        if self.attention is None or state is None:
            return np.full(len(positions), UNKNOWN_LISTENING, np.float32)
        return self.attention.expected_listening(state, positions)

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


def _said(tally: Tally, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[2 per speaker, k]: the logarithm of a track's share in all that is said, and its score by the best's."""
    scores = tally.scores.take(chosen, axis=1)
    said = np.empty((2 * len(scores), len(chosen)), np.float32)
    shares, by_best = said[::2], said[1::2]
    np.divide(scores, np.maximum(tally.scores.sum(axis=1, keepdims=True), _TINY), out=shares)
    np.divide(scores, np.maximum(tally.scores.max(axis=1, initial=0, keepdims=True), _TINY), out=by_best)
    shares += np.float32(_LEAST_SHARE)
    np.log(shares, out=shares)
    return said
