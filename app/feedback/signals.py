"""The signs, weights and masses of `feedback.weights`, for whole arrays; a test holds the two equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.feedback.weights import sign_of, weight_of
from app.settings import FEEDBACK_KINDS

KINDS = ("unlike", *FEEDBACK_KINDS)
"""By code. 0 stands for whatever is no feedback: `unlike`, which takes a like back and leaves no sign nor weight."""


def signs_of(kinds: Sequence[str], codes: NDArray[np.int16], values: NDArray[np.float64]) -> NDArray[np.int8]:
    """int8[n]: `sign_of(kinds[code], value)` for each; a value of NaN means none."""
    signs = np.array([sign_of(kind, None) for kind in kinds], np.int8)[codes]
    for kind, positive, negative in (
        ("rating", values > 3.5, values <= 2),
        ("listen", values >= 0.7, values < 0.3),
    ):
        here = _valued(kind, kinds, codes, values)
        signs[here] = np.subtract(positive[here], negative[here], dtype=np.int8)
    return signs


def weights_of(
    kinds: Sequence[str],
    codes: NDArray[np.int16],
    values: NDArray[np.float64],
    weights: Mapping[str, float],
) -> NDArray[np.float32]:
    """float32[n]: `weight_of(kinds[code], value, weights)` for each; a value of NaN means none."""
    return _weights_of(kinds, codes, values, weights).astype(np.float32)


def masses_of(
    kinds: Sequence[str],
    codes: NDArray[np.int16],
    values: NDArray[np.float64],
    weights: Mapping[str, float],
) -> NDArray[np.float64]:
    """float64[n]: `mass_of(kinds[code], value, weights)` for each; a value of NaN means none."""
    counting = np.array([kind != "unlike" and weights.get(kind, 0.0) != 0 for kind in kinds])
    return np.where(counting[codes], np.maximum(1 + _weights_of(kinds, codes, values, weights), 0), 0)


def _weights_of(
    kinds: Sequence[str],
    codes: NDArray[np.int16],
    values: NDArray[np.float64],
    weights: Mapping[str, float],
) -> NDArray[np.float64]:
    found = np.array([weight_of(kind, None, weights) for kind in kinds])[codes]
    for kind, nothing, full in (("rating", 2.5, 5.0), ("listen", 0.3, 1.0)):
        here = _valued(kind, kinds, codes, values)
        found[here] = weights.get(kind, 0.0) * (values[here] - nothing) / (full - nothing)
    return found


def _valued(
    kind: str, kinds: Sequence[str], codes: NDArray[np.int16], values: NDArray[np.float64]
) -> NDArray[np.bool_]:
    valued: NDArray[np.bool_] = (codes == kinds.index(kind)) & ~np.isnan(values)
    return valued
