"""Logs that can't be right, and questions that the log can't answer.

Three things can be seen from the log itself, without knowing what people do. Importance weights are 1 on average if the
logged propensities are right and everything that the target policy would show had a chance to be shown. What was
shown comes as often as the propensities say. And few decisions that carry most of the weight are few decisions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from models.evaluation.off_policy.intervals import p_value
from models.evaluation.off_policy.log import SingleLog, SlateLog
from models.evaluation.off_policy.methods import Weighed

Floats = NDArray[np.float64]

ALARM = 0.001
"""A check that fails with less probability than this means that the log is wrong."""
LARGEST_UNSEEN = 0.01
"""Of what the target policy shows, this much at most may be of kinds that the log never showed."""
_FEWEST_EXPECTED = 5.0


class MeanWeight(NamedTuple):
    """The mean weight farthest from 1 among the places, in terms of its error, and how likely that is by chance."""

    mean: float
    p_value: float


class ChiSquare(NamedTuple):
    """How far what was shown is from the logged probabilities."""

    statistic: float
    degrees: int
    p_value: float


def effective_size(weights: Floats) -> float:
    """So many unweighted decisions say as much (Kish 1965); of weights [n, m], that of the weakest column."""
    squares = (weights**2).sum(axis=0)
    sizes = np.divide(weights.sum(axis=0) ** 2, squares, out=np.zeros(weights.shape[1]), where=squares > 0)
    return float(sizes.min())


def mean_weight(weighed: Weighed, users: NDArray[np.int64]) -> MeanWeight:
    """Whether weights [n, m] are 1 on average, at each place; the p-value is Bonferroni's over the places."""
    tested = [(float(column.mean()), p_value(column, users, 1.0)) for column in weighed.weights.T]
    varying = max(1, sum(bool(np.ptp(column) > 0) for column in weighed.weights.T))
    mean, lowest = min(tested, key=lambda each: each[1])
    return MeanWeight(mean, min(1.0, varying * lowest))


def shown_as_logged(log: SlateLog | SingleLog) -> ChiSquare:
    """Whether each kind was shown as often, at each place, as its logged probabilities add up to.

    Says nothing of the target policy. With the covariance of draws whose probabilities differ from list to list; given
    what is above them, draws at different places are uncorrelated, so that their statistics add up.
    """
    kinds, probabilities = log.kinds.reshape(len(log.kinds), -1), log.logged_kinds
    statistic, degrees = 0.0, 0
    for place in range(kinds.shape[1]):
        of_place = probabilities[:, place] if probabilities.ndim == 3 else probabilities
        distance, rank = _distance(kinds[:, place], of_place)
        statistic, degrees = statistic + distance, degrees + rank
    return ChiSquare(statistic, degrees, float(chi2.sf(statistic, degrees)) if degrees else 1.0)


def _distance(kinds: NDArray[np.int64], probabilities: Floats) -> tuple[float, int]:
    """The squared Mahalanobis distance of counts from what is expected of them, and its degrees of freedom."""
    n_kinds = probabilities.shape[1]
    excess = np.bincount(kinds, minlength=n_kinds) - probabilities.sum(axis=0)
    covariance = np.diag(probabilities.sum(axis=0)) - probabilities.T @ probabilities
    rare = np.diag(covariance) < _FEWEST_EXPECTED
    # Rare kinds are counted together: alone, none is normal.
    together = np.vstack([np.eye(n_kinds)[~rare], rare.astype(np.float64)])
    excess, covariance = together @ excess, together @ covariance @ together.T
    if covariance[-1, -1] < _FEWEST_EXPECTED:
        excess, covariance = excess[:-1], covariance[:-1, :-1]
    if not len(excess):
        return 0.0, 0
    lengths, axes = np.linalg.eigh(covariance)
    # The counts add up to the number of lists: one direction has no spread.
    real = lengths > 1e-9 * max(lengths.max(), 1.0)
    along = axes[:, real].T @ excess
    return float((along**2 / lengths[real]).sum()), int(real.sum())
