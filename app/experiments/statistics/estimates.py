"""Two variants' means with their errors: ratios by the delta method, CUPED with what users did before.

A ratio of totals is handled through its linearised values r + (n_i - r·d_i) / mean(d): their mean is the ratio and the
variance of that mean is the delta method's (Deng, Knoblich, Lu, "Applying the Delta Method in Metric Analytics", KDD
2018). All else then treats ratios and means alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from app.experiments.statistics.cuped import Moments, adjusted, covariates, moments
from app.experiments.statistics.outcomes import Floats, NoComparison, Outcomes

# Below this share of a mean a standard error is what rounding left of zero.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """Means of control and variant, in this order, and their errors.

    observed:   as they are
    means:      as CUPED adjusts them; the observed ones without it
    variances:  of each mean, without what both share
    shared:     covariance of the two adjusted means, from the covariates' mean that both are moved to; it is no part of
                the difference's error, but of a relative lift's
    variance_reduction: 1 - var(adjusted difference) / var(observed difference); 0 without CUPED
    """

    users: tuple[int, int]
    observed: tuple[float, float]
    means: tuple[float, float]
    variances: tuple[float, float]
    shared: float
    variance_reduction: float
    is_adjusted: bool

    @property
    def difference(self) -> float:
        return self.means[1] - self.means[0]

    @property
    def standard_error(self) -> float:
        """Of the difference; exactly 0 where nothing varies but by rounding."""
        error = float(np.sqrt(sum(self.variances)))
        return error if error > _ROUNDING * max(map(abs, self.observed)) else 0.0

    @property
    def degrees_of_freedom(self) -> float:
        """Welch and Satterthwaite's."""
        # Of shares, for the square of a small variance may be 0.
        total = sum(self.variances)
        shares = [
            (variance / total) ** 2 / (users - 1) for variance, users in zip(self.variances, self.users, strict=True)
        ]
        return float(1.0 / sum(shares))


def estimated(control: Outcomes, variant: Outcomes, *, cuped: bool) -> Estimate:
    """Both variants' means. Raises NoComparison below two users in one, or where a ratio has nothing to divide by."""
    values = linearised(control, "control"), linearised(variant, "variant")
    rows = covariates(control, variant) if cuped else None
    of_control = moments(values[0], rows[0] if rows else None)
    of_variant = moments(values[1], rows[1] if rows else None)
    plain = _unadjusted(of_control, of_variant)
    found = adjusted(of_control, of_variant) if rows and plain.standard_error > 0.0 else None
    if found is None:
        return plain
    return replace(
        plain,
        means=found.means,
        variances=found.variances,
        shared=found.shared,
        variance_reduction=1.0 - sum(found.variances) / sum(plain.variances),
        is_adjusted=True,
    )


def _unadjusted(control: Moments, variant: Moments) -> Estimate:
    means = float(control.means[0]), float(variant.means[0])
    variances = [float(one.products[0, 0]) / (one.users - 1) / one.users for one in (control, variant)]
    return Estimate(
        users=(control.users, variant.users),
        observed=means,
        means=means,
        variances=(variances[0], variances[1]),
        shared=0.0,
        variance_reduction=0.0,
        is_adjusted=False,
    )


def linearised(outcomes: Outcomes, name: str) -> Floats:
    """One value per user whose mean is the metric. name: of the variant, for errors."""
    if outcomes.users < 2:
        raise NoComparison(f"{name} has {outcomes.users} users; a comparison needs 2 in each variant")
    if outcomes.denominator is None:
        return outcomes.numerator
    total = float(outcomes.denominator.sum())
    if total <= 0.0:
        raise NoComparison(f"the denominator of {name} sums to {total:g}: there is nothing to divide by")
    ratio = float(outcomes.numerator.sum()) / total
    return ratio + (outcomes.numerator - ratio * outcomes.denominator) * (outcomes.users / total)
