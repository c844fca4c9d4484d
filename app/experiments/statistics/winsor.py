"""Winsorising: the few largest values are cut to a quantile, so that a handful of users can't decide a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from app.experiments.statistics.outcomes import ARRAYS, Floats, Outcomes


def winsorised(control: Outcomes, variant: Outcomes, quantile: float | None) -> tuple[Outcomes, Outcomes]:
    """Both variants with every array cut at its own quantile of the positive values, pooled over the variants.

    Pooled, because a cut of each variant's own would hide an effect on the largest values. Of the positive ones,
    because a metric that most users have at zero would be cut to nothing.
    """
    if quantile is None:
        return control, variant
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"winsor is {quantile}, not a quantile between 0 and 1")
    tops = {}
    for name in ARRAYS:
        one, other = getattr(control, name), getattr(variant, name)
        if one is not None and other is not None:
            tops[name] = _top(np.concatenate([one, other]), quantile)
    return _cut(control, tops), _cut(variant, tops)


def _top(pooled: Floats, quantile: float) -> float:
    positive = pooled[pooled > 0.0]  # leaves nan out as well
    if not len(positive):
        return math.inf
    rank = math.ceil(quantile * len(positive)) - 1
    return float(np.partition(positive, rank)[rank])


def _cut(outcomes: Outcomes, tops: Mapping[str, float]) -> Outcomes:
    return replace(outcomes, **{name: np.minimum(getattr(outcomes, name), top) for name, top in tops.items()})
