"""From what an item is to where its vector lies: factors for items that nobody touched, and the content beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.contracts import Scores
from models.data.terms import unit_rows

RIDGE = 10.0
CONTENT_WIDTH = 32
"""Content dimensions kept: the dot product of a request costs half of what all would, and 90 % of the
squared length stays."""


@dataclass(frozen=True, slots=True)
class ContentMap:
    """From content vectors to both halves of an item's vector.

    to_factors: float32[d + 1, f], the last row for the constant
    to_content: float32[d, p]
    scale:      length of the content half
    """

    to_factors: Scores
    to_content: Scores
    scale: float

    def vectors(self, content: Scores) -> Scores:
        """float32[n, f + p]; zeros where nothing is known."""
        known = content.any(axis=1, keepdims=True)
        factors = np.where(known, content @ self.to_factors[:-1] + self.to_factors[-1], 0)
        return np.hstack([factors, self.scale * unit_rows(content @ self.to_content)]).astype(np.float32)


def fit_content_map(content: Scores, factors: Scores, counts: NDArray[np.int64]) -> ContentMap:
    """Ridge regression on the items that were met, each as trustworthy as it was met often."""
    trust = counts / (counts + 5.0)
    inputs = np.hstack([content, np.ones((len(content), 1))]).astype(np.float64)
    weighted = inputs.T * trust
    to_factors = np.linalg.solve(weighted @ inputs + RIDGE * np.eye(inputs.shape[1]), weighted @ factors)
    lengths = np.linalg.norm(factors[counts > 0], axis=1)
    return ContentMap(
        to_factors.astype(np.float32),
        _principal_directions(content),
        float(np.sqrt(np.mean(lengths**2))) if lengths.any() else 1.0,
    )


def _principal_directions(content: Scores) -> Scores:
    """float32[d, p]: not centred, so that cosines are kept."""
    width = content.shape[1]
    if width <= CONTENT_WIDTH:
        return np.eye(width, dtype=np.float32)
    _, directions = np.linalg.eigh(content.T.astype(np.float64) @ content)
    return np.ascontiguousarray(directions[:, ::-1][:, :CONTENT_WIDTH], np.float32)
