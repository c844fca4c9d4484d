"""What policies came to with the same listeners, and by how much they differ.

Intervals are 95 %, by drawing whole listeners anew: what one listener hears in several sessions is no new evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWN_ANEW = 2_000


@dataclass(frozen=True, slots=True)
class Played:
    """What one listener was given in all sessions; what was looked for by oneself is not counted."""

    sessions: int
    seconds: float
    tracks: int
    skipped: int


def report(results: Mapping[str, list[Played]], against: Mapping[str, str], *, seed: int) -> Iterator[str]:
    """A row of Markdown for each policy: minutes and tracks per session, the share skipped, minutes beside its base.

    against: the policy that one is compared with; the first where none is named
    """
    numbers = {name: as_array(played) for name, played in results.items()}
    count = len(next(iter(numbers.values())))
    drawn = np.random.default_rng(seed).integers(count, size=(DRAWN_ANEW, count))
    yield "| policy | minutes per session | against | difference in minutes | tracks per session | skipped |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, mine in numbers.items():
        base = against.get(name, next(iter(against.values())))
        beside = numbers.get(base, mine)
        difference = "–"
        if name != base and base in numbers:
            difference = _interval(minutes(mine) - minutes(beside), _of_draws(mine, drawn) - _of_draws(beside, drawn))
        yield (
            f"| {name} | {_interval(minutes(mine), _of_draws(mine, drawn), sign=False)} | {base} | {difference} "
            f"| {mine[:, 2].sum() / mine[:, 0].sum():.1f} | {mine[:, 3].sum() / mine[:, 2].sum():.3f} |"
        )


def as_array(played: Sequence[Played]) -> NDArray[np.float64]:
    """float64[listeners, 4]: sessions, seconds, tracks, skipped."""
    return np.array([(each.sessions, each.seconds, each.tracks, each.skipped) for each in played], np.float64)


def minutes(played: NDArray[np.float64]) -> float:
    return float(played[:, 1].sum() / played[:, 0].sum() / 60)


def _of_draws(played: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = played[drawn, 1].sum(axis=1) / played[drawn, 0].sum(axis=1) / 60
    return found


def _interval(value: float, draws: NDArray[np.float64], *, sign: bool = True) -> str:
    low, high = np.percentile(draws, [2.5, 97.5])
    form = "+.2f" if sign else ".2f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
