"""Which of a user's old events with an item may go: all but the days that something is read from."""

from __future__ import annotations

import numpy as np
import pytest

from app.feedback.signals import KINDS
from app.feedback.weights import mass_of
from app.live.compaction import _ROW, DAY_MICROSECONDS, _redundant
from app.settings import DEFAULT_WEIGHTS

FLOOR = 1_000
Done = tuple[str, float]
"""A kind, with its value behind a blank if it has one, and the day that it happened; the floor is day 1,000."""


def kept(*done: Done, weights: dict[str, float] = DEFAULT_WEIGHTS) -> list[float]:
    """The days of the events that stay."""
    past = np.zeros(len(done), _ROW)
    for n, (what, day) in enumerate(done):
        kind, _, value = what.partition(" ")
        code, at = KINDS.index(kind), round(day * DAY_MICROSECONDS)
        past[n] = (7, 3, code, float(value or "nan"), at, n)
    goes = _redundant(past, weights, FLOOR * DAY_MICROSECONDS)
    return [day for (_, day), is_gone in zip(done, goes, strict=True) if not is_gone]


@pytest.mark.parametrize(
    ("done", "days"),
    [
        ([("view", 10), ("click", 20), ("view", 30)], [30]),
        ([("view", 10), ("view", 2_000)], [2_000]),
        ([("view", 1_000), ("view", 2_000)], [1_000, 2_000]),
        # An opinion stands, whatever is only looked at later.
        ([("view", 10), ("purchase", 20), ("view", 30), ("view", 40)], [20, 40]),
        ([("rating 3", 20), ("listen 0.5", 30)], [20, 30]),
        ([("listen 0.9", 20), ("listen 0.5", 30)], [20, 30]),
        ([("purchase", 20), ("view", 2_000)], [20, 2_000]),
        # What decided on the like stays, though another opinion is newer.
        ([("like", 10), ("rating 5", 20), ("view", 30)], [10, 20, 30]),
        ([("like", 10), ("unlike", 20), ("rating 5", 30)], [20, 30]),
        # A dislike counts nothing, so the trail is as of the visit before it.
        ([("view", 10), ("click", 20), ("dislike", 30)], [20, 30]),
        # Days go or stay whole, for a day counts once.
        ([("view", 20.1), ("purchase", 20.5), ("view", 20.9), ("view", 30)], [20.1, 20.5, 20.9, 30]),
        ([], []),
    ],
)
def test_stays_what_something_is_read_from(done: list[Done], days: list[float]) -> None:
    assert kept(*done) == days


def test_the_latest_stays_though_it_says_and_counts_nothing() -> None:
    """The seen set is in the order of the latest event of whatever kind."""
    weights = DEFAULT_WEIGHTS | {"view": 0.0}
    assert mass_of("view", None, weights) == 0
    assert kept(("click", 10), ("view", 20), ("view", 30), weights=weights) == [10, 30]


def test_pairs_are_told_apart() -> None:
    past = np.zeros(4, _ROW)
    past["user"], past["item"] = [1, 1, 2, 1], [1, 2, 1, 1]
    past["kind"], past["value"] = KINDS.index("view"), np.nan
    past["at"], past["seq"] = np.array([1, 1, 1, 2]) * DAY_MICROSECONDS, [4, 3, 2, 1]
    assert _redundant(past, DEFAULT_WEIGHTS, FLOOR * DAY_MICROSECONDS).tolist() == [True, False, False, False]
