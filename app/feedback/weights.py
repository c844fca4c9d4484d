"""What an event says about taste: its sign and its weight. Pure, and the same in serving and training."""

from __future__ import annotations

from collections.abc import Mapping

POSITIVE = frozenset({"like", "bookmark", "share", "purchase"})
NEGATIVE = frozenset({"dislike", "hide", "skip"})


def sign_of(kind: str, value: float | None) -> int:
    """+1 for positive feedback, -1 for negative, 0 for neither (API.md, Events).

    value: the rating 0–5 or the listened fraction 0–1; ignored for other kinds.
    """
    match kind:
        case "rating" if value is not None:
            return 1 if value > 3.5 else -1 if value <= 2 else 0
        case "listen" if value is not None:
            return 1 if value >= 0.7 else -1 if value < 0.3 else 0
    return 1 if kind in POSITIVE else -1 if kind in NEGATIVE else 0


def weight_of(kind: str, value: float | None, weights: Mapping[str, float]) -> float:
    """Strength of the feedback: the kind's weight, scaled by a rating or a listened fraction.

    A rating of 5 counts +1 × weight, 2.5 nothing, 0 counts -1 ×; a listen counts +1 × when heard to the
    end and nothing at 0.3, below which it counts against the track. Kinds without a weight count nothing.
    """
    weight = weights.get(kind, 0.0)
    match kind:
        case "rating" if value is not None:
            return weight * (value - 2.5) / 2.5
        case "listen" if value is not None:
            return weight * (value - 0.3) / 0.7
    return weight


def mass_of(kind: str, value: float | None, weights: Mapping[str, float]) -> float:
    """How much an event counts for its item in the live signals: 1 and its weight, and never less than 0.

    Kinds without a weight count nothing, and so does `unlike`.
    """
    if kind == "unlike" or not weights.get(kind, 0.0):
        return 0.0
    return max(0.0, 1 + weight_of(kind, value, weights))
