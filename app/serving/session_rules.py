"""The recipe of a listening session, as an earlier project found it to pay off; every number a setting. Pure.

    switch → drop → fill → discount → boost → draw

*Switch*: a track of the next-track recommender that was hardly listened to hands over to the personal recommender,
which stays for as long as its tracks are listened to. *Drop*: candidates that are not expected to be listened to.
*Fill*: the most popular tracks of the dropped ones' artists, then of all. *Discount*: what this session skipped pushes
its neighbours down, and an artist heard several times in a row tires. *Draw*: by the softmax of expected listening, so
that the probability of each track is known (docs/decisions/0020).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.serving.exploration import plackett_luce

Floats = NDArray[np.float64]
Rows = NDArray[np.int32]

Sampling = Literal["greedy", "softmax"]
LEAST_FACTOR = 0.01
"""No discount and no boost makes a track less likely than this: it could never come back."""


class Role(IntEnum):
    """Who gave a track. Kept with sessions in Redis: a number never gets another meaning."""

    CHOSEN = 0
    """The listener, who was not given it."""
    NEXT = 1
    PERSONAL = 2
    ARTIST = 3
    POPULAR = 4
    PROMOTION = 5
    OPENING = 6
    """Of a session in which nothing was heard yet."""


# numpy takes longer to find out what a member of an enumeration is than to compare.
_ARTIST, _POPULAR = int(Role.ARTIST), int(Role.POPULAR)


@dataclass(frozen=True, slots=True)
class SessionRules:
    """The recipe's numbers; app/settings.py says what each is for."""

    sampling: Sampling = "greedy"
    temperature: float = 0.1
    candidates: int = 20
    least_listening: float = 0.5
    switch_below: float = 0.7
    artist_tracks: int = 3
    popular_share: float = 1 / 3
    skip_below: float = 0.3
    skip_push: float = 0.5
    artist_fatigue: float = 0.8


def is_personal(role: int, fraction: float, rules: SessionRules) -> bool:
    """Whether the personal recommender gives the next track.

    role, fraction: of the track that was listened to last: who gave it, and how much of it was played
    """
    # Sessions keep float32, in which 0.7 is a little less than 0.7.
    is_listened = bool(np.float32(fraction) >= np.float32(rules.switch_below))
    return is_listened if role == Role.PERSONAL else role == Role.NEXT and not is_listened


def split(rows: Rows, listening: Floats, rules: SessionRules) -> tuple[Rows, Floats, Rows]:
    """The candidates that are expected to be listened to, with how much, and the others."""
    good = listening >= rules.least_listening
    return rows[good], listening[good], rows[~good]


def discounts(creators: Rows, *, near: Floats, heard: Iterable[int], rules: SessionRules) -> Floats:
    """float64[n]: what each candidate's expected listening is multiplied by, above 0 and at most 1.

    creators: int32[n], code of each candidate's artist, below 0 for none
    near:     float64[n], how near (0–1) it is to what was skipped in this session
    heard:    codes of the artists of the session's tracks, the latest first
    """
    factors: Floats = 1 - rules.skip_push * near
    artist, times = _in_a_row(heard)
    if times > 1:
        factors[creators == artist] *= rules.artist_fatigue ** (times - 1)
    return np.maximum(factors, LEAST_FACTOR, out=factors)


def _in_a_row(heard: Iterable[int]) -> tuple[int, int]:
    """The artist of the latest track and how often in a row it was heard; 0 times for a track without one."""
    artist, times = -1, 0
    for each in heard:
        if times and each != artist:
            break
        if each < 0:
            return -1, 0
        artist, times = each, times + 1
    return artist, times


class Ordered(NamedTuple):
    """Tracks in the order in which they are given.

    order:        int64[n], indices of what was ordered
    scores:       float64[n], by place, never rising
    propensities: float64[n], by place: of being taken given those above; NaN where the order was not drawn
    logits:       float64[k] of the first k candidates, which the draw was among; empty without one
    """

    order: NDArray[np.int64]
    scores: Floats
    propensities: Floats
    logits: Floats


def ordered(
    expected: Floats,
    roles: NDArray[np.uint8],
    factors: Floats,
    rules: SessionRules,
    generator: np.random.Generator | None,
) -> Ordered:
    """Expected listening as weights, fills below them, and the order by weight, or drawn by it.

    expected:  float64[n], predicted fractions, best candidates first; of fills it is not looked at
    roles:     uint8[n]; Role.ARTIST and Role.POPULAR are fills
    factors:   float64[n], discounts and boosts
    generator: None leaves the order to the weights
    Only the first `rules.candidates` are put in order; the others stand behind them as they are.
    """
    weights = _log_weights(expected, roles, factors, rules)
    n = len(weights)
    k = min(rules.candidates, n)
    order, propensities, logits = np.arange(n), np.full(n, np.nan), weights[:k]
    if generator is None:
        first = (-logits).argsort(kind="stable")
        keys, logits = logits[first], logits[:0]
    else:
        first, keys, propensities[:k] = plackett_luce(logits, generator)
    # What stands behind keeps its own order; a score only says that.
    scores = np.asarray(float(keys.min(initial=0.0)) - 1 - (order - k) * 1e-3, np.float64)
    order[:k], scores[:k] = first, keys
    return Ordered(order, scores, propensities, logits)


def _log_weights(expected: Floats, roles: NDArray[np.uint8], factors: Floats, rules: SessionRules) -> Floats:
    """Of the softmax of expected listening; the artists' fills weigh what the lowest does, the others a share of it."""
    weights = expected * np.minimum(factors, 1)
    weights /= rules.temperature
    weights += np.log(np.maximum(factors, 1))
    is_popular = roles == _POPULAR
    is_fill = is_popular | (roles == _ARTIST)
    if is_fill.any():
        lowest = float(weights[~is_fill].min(initial=np.inf))
        lowest = 0.0 if math.isinf(lowest) else lowest
        weights[is_fill] = lowest + np.log(np.maximum(factors[is_fill], LEAST_FACTOR))
        weights[is_popular] += math.log(rules.popular_share)
    return weights
