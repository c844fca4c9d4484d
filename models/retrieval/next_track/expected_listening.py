"""How much of a track will be heard: what is usual of the track and this session, and what foretells more.

A logistic regression on a handful of numbers, each of which was let in only where it foretold sessions that nobody had
learned from (`models.fit_expected_listening`). What is usual is shrunk by empirical Bayes: a track heard twice says
little of itself, and is taken for its artist's. What the user heard before this session is not looked at: of a served
past nobody can tell how much was heard of a track and what was only liked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Positions, Scores
from models.retrieval.next_track.answers import Heard

COMPONENTS = ("track", "session", "attention", "choice")
"""What is looked at, in the order of the weights."""


@dataclass(frozen=True)
class ExpectedListening:
    """Built by `fit_expected_listening` or `from_parts`.

    usual:   float32[n], the fraction that is heard of each track anywhere, 0–1
    damping: float32[1], as how many listens the belief counts that a session is like others
    weights: float32[c + 1] of COMPONENTS, 0 for those that foretold nothing; the offset is last
    lowest:  float32[1], of the choices learned from; a lower one is taken for this
    """

    ARRAYS: ClassVar[tuple[str, ...]] = ("usual", "damping", "weights", "lowest")
    usual: Scores
    damping: Scores
    weights: Scores
    lowest: Scores

    def evidence(
        self, heard: Heard, positions: Positions, attention: Scores | None, choice: Scores
    ) -> NDArray[np.float32]:
        """float32[c + 1, k]: by component, and 1.

        attention: float32[k], logits of the fraction, by self-attention; None without it
        choice:    float32[k], logarithms of the shares that the ranker gives, -inf for what it has not ranked
        """
        rows = np.empty((len(COMPONENTS) + 1, len(positions)), np.float32)
        rows[0] = self._logits.take(positions)
        rows[1] = self._beyond_usual(heard, self.damping[0])
        rows[2] = 0 if attention is None else attention
        np.maximum(choice, self.lowest, out=rows[3])
        rows[4] = 1
        return rows

    def expected(self, evidence: NDArray[np.float32]) -> Scores:
        """float32[k], 0–1."""
        return np.asarray(1 / (1 + np.exp(-(self.weights @ evidence))), np.float32)

    def _beyond_usual(self, heard: Heard, damping: float) -> float:
        """By how much more was heard than is usual of these tracks, shrunk."""
        if len(heard.positions) == 0:
            return 0.0
        beyond = heard.fractions - self.usual.take(heard.positions)
        # What nobody measured is NaN, which is not equal to itself.
        beyond = beyond[beyond == beyond]  # noqa: PLR0124 - `np.isfinite` takes three times as long
        return float(beyond.sum() / (len(beyond) + damping))

    @cached_property
    def _logits(self) -> Scores:
        return np.asarray(logits_of(self.usual), np.float32)

    def parts(self) -> dict[str, NDArray[np.float32]]:
        return {f"listening_{name}": getattr(self, name) for name in self.ARRAYS}

    @classmethod
    def from_parts(cls, arrays: Arrays) -> Self | None:
        """None where a release has none, or has one that was learned from other components."""
        found = {name: arrays[f"listening_{name}"] for name in cls.ARRAYS if f"listening_{name}" in arrays}
        if len(found) < len(cls.ARRAYS) or len(found["weights"]) != len(COMPONENTS) + 1:
            return None
        return cls(**{name: np.array(array, np.float32) for name, array in found.items()})


def logits_of(fractions: NDArray[np.floating]) -> NDArray[np.floating]:
    chance = np.clip(fractions, 0.01, 0.99)
    return np.asarray(np.log(chance / (1 - chance)))
