"""The probabilities of rankings drawn place by place, in proportion to exp(logit) of what is left (Plackett 1975).

Many lists at once: `logits` are float64[n, c] with -inf where a list has fewer than c candidates. A policy that does
not draw at all is one whose logits lie far apart; see `certain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOBODY = -1
"""Stands for no candidate, where a place was not drawn."""

_FAR_APART = 800.0
"""exp(-800) is 0 in floats: nothing that is so far behind can be drawn."""
_ROUNDING = 1e-9
_STEP = 0.1
"""Of the integral over the logarithm of time, by the trapezoid rule: a place's probabilities then add up to 1 within
1e-10. With 0.25, those of 50 equally likely candidates were off by 2e-9."""


def certain(ranks: Floats) -> Floats:
    """Logits of a policy that always shows the best of what is left; ranks from 1, the best first. For `walk` only."""
    return -_FAR_APART * ranks


def walk(logits: Floats, chosen: Ints) -> Iterator[Floats]:
    """For each place: float64[n, c], the probability of each candidate given those chosen above.

    chosen: int64[n, k], the candidate at each place, NOBODY where none was drawn
    """
    left = logits.copy()
    for place in range(chosen.shape[1]):
        yield _softmax(left)
        drawn = np.flatnonzero(chosen[:, place] != NOBODY)
        left[drawn, chosen[drawn, place]] = -np.inf


def marginals(logits: Floats, places: int) -> Floats:
    """float64[places, c]: the probability of each of c candidates at each place, whatever is above it. Exact to 1e-12.

    logits: float64[c]. Candidates are runners who arrive at random, exponentially distributed times, at rates
    exp(logit): their order is a Plackett–Luce ranking. A candidate is at place j where j-1 others arrive earlier,
    which is integrated over its time of arrival. Raises ValueError for logits so far apart that floats can't tell.
    """
    return _marginals(tuple((logits - logits.max()).tolist()), min(places, len(logits)))


@lru_cache(512)
def _marginals(logits: tuple[float, ...], places: int) -> Floats:
    rates = np.exp(np.array(logits))
    slowest = rates[rates > 0].min()
    clock = np.arange(-38 - np.log(rates.sum()), 5 - np.log(slowest), _STEP)
    expected = rates[:, None] * np.exp(clock)
    absent, present = np.exp(-expected), -np.expm1(-expected)
    before, behind = _arrivals(present, absent, places), _arrivals(present[::-1], absent[::-1], places)[::-1]
    density = expected * absent * _STEP
    found = np.empty((places, len(rates)))
    for place in range(places):
        others = sum(before[:, j] * behind[:, place - j] for j in range(place + 1))
        found[place] = (others * density).sum(axis=1)
    if np.abs(found.sum(axis=1) - 1).max() > _ROUNDING:
        raise ValueError(f"logits from {min(logits):g} to {max(logits):g} are too far apart for floats")
    found.flags.writeable = False
    return found


def _arrivals(present: Floats, absent: Floats, most: int) -> Floats:
    """float64[c, most, times]: the probability that so many of the candidates before each one are there by a time."""
    found = np.empty((len(present), most, present.shape[1]))
    counts = np.zeros((most, present.shape[1]))
    counts[0] = 1.0
    for candidate in range(len(present)):
        found[candidate] = counts
        one_more = np.vstack([np.zeros((1, counts.shape[1])), counts[:-1] * present[candidate]])
        counts = counts * absent[candidate] + one_more
    return found


def _softmax(logits: Floats) -> Floats:
    highest = logits.max(axis=1, keepdims=True)
    # A list with nothing left: every place of it was drawn.
    weights = np.exp(logits - np.where(np.isfinite(highest), highest, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0))
