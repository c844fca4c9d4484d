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

from app.experiments.statistics.outcomes import Floats, Outcomes


class Fit(NamedTuple):
    """shifts: what to subtract from each mean; variances: of the adjusted means; shared: their covariance besides."""

    shifts: tuple[float, float]
    variances: tuple[float, float]
    shared: float


def covariates(control: Outcomes, variant: Outcomes) -> tuple[Floats, Floats] | None:
    """Columns (users, k) of each variant, alike in meaning; None where no past is known or nobody's differs."""
    past = [
        np.concatenate([before, after])
        for before, after in (
            (control.before_numerator, variant.before_numerator),
            (control.before_denominator, variant.before_denominator),
        )
        if before is not None and after is not None
    ]
    if not past:
        return None
    missing = np.isnan(past).any(axis=0)
    if missing.all():
        return None
    columns: list[Floats] = [np.where(missing, column[~missing].mean(), column) for column in past]
    if missing.any():
        columns.append(np.where(missing, 1.0, 0.0))
    varying = [column for column in columns if column.min() < column.max()]
    if not varying:
        return None
    stacked = np.stack(varying, axis=1)
    return stacked[: control.users], stacked[control.users :]


def fitted(values: tuple[Floats, Floats], columns: tuple[Floats, Floats]) -> Fit | None:
    """Least squares within the variants; None where there are too few users to fit and to estimate an error."""
    users = len(values[0]), len(values[1])
    total, count = sum(users), columns[0].shape[1]
    free = total - 2 - count
    if free < 1:
        return None
    averages = columns[0].mean(axis=0), columns[1].mean(axis=0)
    centred = columns[0] - averages[0], columns[1] - averages[1]
    residuals = values[0] - values[0].mean(), values[1] - values[1].mean()
    gram = centred[0].T @ centred[0] + centred[1].T @ centred[1]
    scale = np.sqrt(np.diag(gram))
    scale[scale == 0.0] = 1.0
    moments = (residuals[0] @ centred[0] + residuals[1] @ centred[1]) / scale
    # The pseudo-inverse gives columns that say the same thing one coefficient between them.
    theta = np.linalg.pinv(gram / np.outer(scale, scale), rcond=1e-10, hermitian=True) @ moments / scale
    middle = (users[0] * averages[0] + users[1] * averages[1]) / total
    spread = (total - 2) / free  # each coefficient costs a degree of freedom
    variances = [
        float(np.sum((residual - centre @ theta) ** 2)) / (n - 1) / n * spread
        for residual, centre, n in zip(residuals, centred, users, strict=True)
    ]
    return Fit(
        shifts=(float((averages[0] - middle) @ theta), float((averages[1] - middle) @ theta)),
        variances=(variances[0], variances[1]),
        shared=float(theta @ gram @ theta) / (total - 2) / total,
    )
