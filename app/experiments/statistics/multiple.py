"""Many metrics, one experiment: p-values adjusted for how often chance was given a try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Method = Literal["holm", "benjamini_hochberg"]


def adjusted(p_values: Sequence[float], method: Method = "holm") -> list[float]:
    """Adjusted p-values in the order given; compare each with alpha.

    holm: the chance of even one false finding stays below alpha, however the metrics depend on each other.
    benjamini_hochberg: of what is found, at most a share alpha is false on average; more is found. For metrics that
    are independent or positively dependent.
    """
    given = np.asarray(p_values, dtype=np.float64)
    if not ((given >= 0.0) & (given <= 1.0)).all():
        raise ValueError(f"p-values must lie in 0–1, not {list(p_values)}")
    if method == "holm":
        return list(map(float, _holm(given)))
    if method == "benjamini_hochberg":
        return list(map(float, _benjamini_hochberg(given)))
    raise ValueError(f"method {method!r} is neither 'holm' nor 'benjamini_hochberg'")


def _holm(given: np.ndarray) -> np.ndarray:
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    result = np.empty_like(given)
    result[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return result


def _benjamini_hochberg(given: np.ndarray) -> np.ndarray:
    """By hand: scipy.stats has it, which takes 24 MiB in every worker."""
    order = np.argsort(-given, kind="stable")
    factors = len(given) / np.arange(len(given), 0, -1)
    result = np.empty_like(given)
    result[order] = np.minimum.accumulate(np.minimum(given[order] * factors, 1.0))
    return result
