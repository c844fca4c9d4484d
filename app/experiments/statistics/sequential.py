"""Always-valid inference: how many standard errors to allow at a sample size that nobody chose beforehand.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas ("Time-uniform central limit
theory and asymptotic confidence sequences", Annals of Statistics 2024, Theorem 2.2): a Gaussian mixture over
independent users, whichever distribution they have. It holds for users whose numbers are final; why, and what
goes wrong with totals that still grow, is in docs/decisions/0018.
"""

from __future__ import annotations

import math

PLANNED_USERS = 10_000
"""Where the interval is tightest unless a plan says otherwise; a tenth or ten times as many cost a quarter at most."""

MINIMUM_USERS = 50
"""Of each variant. With fewer the normal distribution, which all of this leans on, is no description of a mean."""


def critical_value(users: int, *, alpha: float, planned_users: float) -> float:
    """Standard errors on either side that hold at every sample size at once.

    planned_users: of both variants together, fixed before the first look: the mixture's parameter follows from it.
    """
    information = users * _precision(alpha, planned_users)
    return math.sqrt((1.0 + 1.0 / information) * (math.log1p(information) - 2.0 * math.log(alpha)))


def p_value(z: float, users: int, *, alpha: float, planned_users: float) -> float:
    """Below alpha exactly where |z| exceeds the critical value: one over the mixture's likelihood ratio.

    alpha: only tunes the mixture here; a p-value is valid at any level.
    """
    information = users * _precision(alpha, planned_users)
    log_ratio = z**2 * information / (2.0 * (1.0 + information)) - 0.5 * math.log1p(information)
    return math.exp(-max(log_ratio, 0.0))


def _precision(alpha: float, planned_users: float) -> float:
    """The mixture's rho² that makes the interval tightest at planned_users (the paper's appendix B.2)."""
    level = -2.0 * math.log(alpha)
    return (level + math.log(level) + 1.0) / planned_users
