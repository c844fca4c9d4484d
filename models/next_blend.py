"""The blend of what counters, neighbours and self-attention say of the next track, as a player is answered by it.

Whatever any of them names is a candidate, some hundreds in all; a small ranker weighs what each says of it
(`models.ranking.listwise`). So self-attention looks at hundreds of tracks, not at all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from models.contracts import (
    Arrays,
    History,
    NextCandidates,
    NextTrackRecommender,
    Parameters,
    Parts,
    Positions,
    Scores,
    SessionQuery,
)
from models.data.pasts import LONGEST_PAST
from models.ranking.listwise import ListwiseRanker
from models.retrieval.next_track.answers import (
    LONGEST,
    UNKNOWN_LISTENING,
    Claims,
    Heard,
    MakesClaims,
    Tally,
    allowed,
    best_of,
)
from models.retrieval.next_track.attention import SessionAttention
from models.retrieval.next_track.expected_listening import ExpectedListening
from models.retrieval.next_track.linked_tracks import LinkedTracks
from models.retrieval.next_track.popular_tracks import PopularTracks

SPEAKERS = ("transition_counter", "co_listens", "session_knn", "recency_ease")
"""Recipes whose best become candidates, those of them that the release has."""
OF_THE_PAST = "co_listens"
"""Who is asked of what the user heard before this session, and how: so many of the latest tracks, fading so."""
_PAST_LAST, _PAST_DECAY = 12, 0.95
PASTS_KEPT = 500
"""What so many pasts say is kept, some 20 kB each."""
ATTENTION = SessionAttention.name
POPULAR = PopularTracks.name
MOST_EACH = 120
MOST_POPULAR = 200
_LEAST_SHARE = 1e-4
_TINY = 1e-30
_LATENESS = (1 / np.arange(LONGEST, 0, -1)).astype(np.float32)
"""By place in a session, the latest last: 1 over how many tracks ago it was heard, itself counted."""


NOTHING = Heard(np.empty(0, np.int32), np.empty(0, np.float32))


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
    listening: None where nobody measured, or nothing foretold it
    asks_past: whether what the user heard before the session counts too
    """

    name: ClassVar[str] = "next_blend"
    speakers: Mapping[str, MakesClaims]
    popular: PopularTracks
    attention: SessionAttention | None
    ranker: ListwiseRanker
    chosen: Mapping[str, Any]
    listening: ExpectedListening | None = None
    asks_past: bool = False

    @property
    def n_items(self) -> int:
        return self.popular.n_items

    def next(self, query: SessionQuery) -> NextCandidates:
        """What somebody names comes first; popular tracks fill up where that isn't enough."""
        heard = Heard.of(query, self.n_items)
        past = past_of(query.history, self.n_items) if self.asks_past and query.history is not None else NOTHING
        seen = self.seen(heard, query, past)
        scores = self.ranker.scores(seen.features, seen.context)
        found = best_of(seen.positions, scores, query.limit)
        named = len(found.positions)
        if named < query.limit:
            found = self._filled_up(found, query)
        if self.listening is None:
            return found
        # Shares among those that the query allows; where they were learned from all were allowed, and shares lower.
        choice = found.scores - log_sum(scores)
        choice[named:] = -np.inf
        attended = self.attended_listening(seen.state, found.positions)
        evidence = self.listening.evidence(heard, found.positions, attended, choice)
        return found._replace(listening=self.listening.expected(evidence))

    def seen(self, heard: Heard, query: SessionQuery | None = None, past: Heard = NOTHING) -> Seen:
        """Candidates with all that is said of them; with a query only those that it allows.

        past: what the user heard before this session
        """
        claims = [speaker.claims(heard) for speaker in self.speakers.values()]
        if self.asks_past:
            latest = past.positions[-_PAST_LAST:], past.fractions[-_PAST_LAST:]
            claims.append(self._kept_claims(latest[0].tobytes(), latest[1].tobytes()))
        said = Tally.of(claims, self.n_items)
        best = said.best(MOST_EACH)
        positions = said.positions[best]
        if query is not None:
            keep = allowed(positions, query)
            best, positions = best.compress(keep), positions.compress(keep)
        state = None if self.attention is None or len(heard.positions) == 0 else self.attention.state(heard)
        features = [_said(said, best), self._attended(state, positions), self._known(heard, positions)]
        if self.asks_past:
            features.append(_heard_before(past, positions))
        return Seen(positions, np.concatenate(features), self._situation(heard), state)

    @cached_property
    def _kept_claims(self) -> Callable[[bytes, bytes], Claims]:
        """`_claims_of_the_past`: a user's past stays what it is from one question of a session to the next."""
        # Not of a method: it would hold on to this blend, and a release that was replaced has to go.
        return lru_cache(PASTS_KEPT)(partial(_claims_of_the_past, self._of_the_past, self.n_items))

    @cached_property
    def _of_the_past(self) -> LinkedTracks:
        return replace(cast("LinkedTracks", self.speakers[OF_THE_PAST]), last=_PAST_LAST, decay=_PAST_DECAY)

    def _attended(self, state: Scores | None, positions: Positions) -> NDArray[np.float32]:
        """float32[1, k]: logits of self-attention, 0 for the best; float32[0, k] in a blend without it."""
        if self.attention is None or state is None or len(positions) == 0:
            return np.zeros((int(self.attention is not None), len(positions)), np.float32)
        logits = self.attention.vectors.take(positions, axis=0).dot(self.attention.direction(state))
        logits -= np.maximum.reduce(logits)
        return np.asarray(logits[None])

    def _known(self, heard: Heard, positions: Positions) -> NDArray[np.float32]:
        """float32[4, k]: popular ever, popular of late, how lately it was heard in this session, and whether."""
        known = np.zeros((4, len(positions)), np.float32)
        known[:2] = self._log_counts.take(positions, axis=1)
        if len(positions):
            places = np.minimum(positions.searchsorted(heard.positions), len(positions) - 1)
            found = (positions.take(places) == heard.positions).nonzero()[0]
            if len(found):
                # Of a track that was heard twice the later time is written last, and stays.
                again = places.take(found)
                known[2, again], known[3, again] = _LATENESS[LONGEST - len(places) :].take(found), 1
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
            np.concatenate([found.positions, others]),
            np.concatenate([found.scores, below]),
            np.full(len(found.positions) + len(others), UNKNOWN_LISTENING, np.float32),
        )

    def attended_listening(self, state: Scores | None, positions: Positions) -> Scores | None:
        """float32[k]: logits of the fraction that is heard of each, by self-attention, where it learned them."""
        if self.attention is None or state is None or not self.attention.knows_listening:
            return None
        return self.attention.listening_logits(state, positions)

    def parts(self) -> Parts:
        parameters = {
            "speakers": list(self.speakers), "attention": self.attention is not None, "chosen": dict(self.chosen),
            "asks_past": self.asks_past,
        }  # fmt: skip
        return Parts(parameters, self.ranker.parts() | ({} if self.listening is None else self.listening.parts()))

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays, fitted: Mapping[str, NextTrackRecommender]) -> Self:
        return cls.of(
            {name: fitted[name] for name in (*parameters["speakers"], POPULAR)}
            | ({ATTENTION: fitted[ATTENTION]} if parameters["attention"] else {}),
            ListwiseRanker.from_parts(arrays),
            parameters["chosen"],
            ExpectedListening.from_parts(arrays),
            asks_past=bool(parameters.get("asks_past", False)),
        )

    @classmethod
    def of(
        cls,
        fitted: Mapping[str, Any],
        ranker: ListwiseRanker,
        chosen: Mapping[str, Any],
        listening: ExpectedListening | None = None,
        *,
        asks_past: bool = False,
    ) -> Self:
        """From fitted recommenders by name."""
        speakers = {name: fitted[name] for name in SPEAKERS if name in fitted}
        return cls(speakers, fitted[POPULAR], fitted.get(ATTENTION), ranker, chosen, listening, asks_past)


def past_of(history: History, n_items: int) -> Heard:
    """What the user did before, as if it had been listened to: a weight of 1 is a track heard to its end."""
    if len(history) == 0:
        return NOTHING
    positions = history.positions[-LONGEST_PAST:]
    is_known = positions.view(np.uint32) < n_items
    fractions = np.clip(0.3 + 0.7 * history.weights[-LONGEST_PAST:], 0, 1).astype(np.float32)
    return Heard(positions[is_known], fractions[is_known])


def log_sum(scores: Scores) -> float:
    """The logarithm of the sum of their exponentials."""
    if len(scores) == 0:
        return 0.0
    best = scores.max()
    return float(best + np.log(np.exp(scores - best).sum()))


def _claims_of_the_past(of_the_past: LinkedTracks, n_items: int, positions: bytes, fractions: bytes) -> Claims:
    """All that it says of each track in one. Of the same bytes always the same."""
    past = Heard(np.frombuffer(positions, np.int32), np.frombuffer(fractions, np.float32))
    named, (scores,) = Tally.of([of_the_past.claims(past)], n_items)
    return Claims(named, scores)


def _heard_before(past: Heard, positions: Positions) -> NDArray[np.float32]:
    """float32[1, k]: how the user liked each before, -0.5–1; 0 for what is new."""
    found = np.zeros((1, len(positions)), np.float32)
    if len(positions) and len(past.positions):
        places = np.minimum(positions.searchsorted(past.positions), len(positions) - 1)
        is_candidate = positions[places] == past.positions
        found[0, places[is_candidate]] = past.strengths[is_candidate]
    return found


def _said(tally: Tally, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[2 per speaker, k]: the logarithm of a track's share in all that is said, and its score by the best's."""
    scores = tally.scores.take(chosen, axis=1)
    said = np.empty((2 * len(scores), len(chosen)), np.float32)
    shares, by_best = said[::2], said[1::2]
    np.divide(scores, np.maximum(np.add.reduce(tally.scores, axis=1, keepdims=True), _TINY), out=shares)
    np.divide(scores, np.maximum.reduce(tally.scores, axis=1, initial=_TINY, keepdims=True), out=by_best)
    shares += np.float32(_LEAST_SHARE)
    np.log(shares, out=shares)
    return said
