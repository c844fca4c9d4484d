"""CUPED: what users did before their first exposure explains part of how they differ, and is taken out.

Deng, Xu, Kohavi, Walker, "Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment Data",
WSDM 2013. The coefficients are pooled over the variants, so that the adjusted difference is that of the least-squares
fit on variant and covariates. A user without a past keeps their place: the covariate gets the mean of the others, and
an indicator column says so, with a coefficient of its own. For a ratio the covariates are numerator and denominator
of the past, side by side: the paper's linearised past ratio is one of their combinations, so this can't explain less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dsyev

from app.experiments.statistics.outcomes import Floats, Outcomes

# Directions in which the covariates vary less than this, of at most as many as there are, say nothing of their own.
_RANK = 1e-10


class Moments(NamedTuple):
    """Of one variant: users, means (k + 1) and sums of centred products (k + 1, k + 1); the metric first."""

    users: int
    means: Floats
    products: Floats


class Adjustment(NamedTuple):
    """means and their variances, of control and variant; shared: what both means vary by together, besides."""

    means: tuple[float, float]
    variances: tuple[float, float]
    shared: float


def covariates(control: Outcomes, variant: Outcomes) -> tuple[Floats, Floats] | None:
    """Rows (k, users) of each variant, alike in meaning; None where nobody's past is known."""
    past = [
        np.concatenate([one, other])
        for one, other in (
            (control.before_numerator, variant.before_numerator),
            (control.before_denominator, variant.before_denominator),
        )
        if one is not None and other is not None
    ]
    if not past:
        return None
    missing = np.isnan(sum(past))
    if missing.all():
        return None
    if missing.any():
        past = [np.where(missing, row[~missing].mean(), row) for row in past] + [missing.astype(np.float64)]
    rows = np.stack(past)
    return rows[:, : control.users], rows[:, control.users :]


def moments(values: Floats, rows: Floats | None = None) -> Moments:
    """values: of the metric, one per user; rows: their covariates, if any."""
    table = values[np.newaxis] if rows is None else np.concatenate([values[np.newaxis], rows])
    means = table.sum(axis=1) / len(values)
    centred = table - means[:, np.newaxis]
    return Moments(len(values), means, centred @ centred.T)


def adjusted(control: Moments, variant: Moments) -> Adjustment | None:
    """Least squares within the variants; None where no covariate varies, or too few users leave nothing for errors."""
    total = control.users + variant.users
    products = control.products + variant.products
    theta, rank = _solved(products[1:, 1:], products[1:, 0])
    free = total - 2 - rank
    if rank == 0 or free < 1:
        return None
    middle = (control.users * control.means[1:] + variant.users * variant.means[1:]) / total
    spread = (total - 2) / free  # each coefficient costs a degree of freedom
    contrast = np.concatenate([[1.0], -theta])
    means, variances = [], []
    for one in (control, variant):
        means.append(float(one.means[0] - (one.means[1:] - middle) @ theta))
        left = max(float(contrast @ one.products @ contrast), 0.0)
        variances.append(left / (one.users - 1) / one.users * spread)
    shared = float(theta @ products[1:, 1:] @ theta) / (total - 2) / total
    return Adjustment((means[0], means[1]), (variances[0], variances[1]), shared)


def _solved(gram: Floats, right: Floats) -> tuple[Floats, int]:
    """Coefficients and the gram matrix's rank; columns that say the same thing share one coefficient."""
    scale = np.sqrt(gram.diagonal())
    scale[scale == 0.0] = 1.0
    eigenvalues, vectors, _ = dsyev(gram / np.outer(scale, scale))
    kept = eigenvalues > _RANK
    basis = vectors[:, kept]
    return basis @ (basis.T @ (right / scale) / eigenvalues[kept]) / scale, int(kept.sum())
