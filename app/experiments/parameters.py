"""What a variant may set of a recipe beside its recommender: one line for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number between `low` and `high` (both allowed); `default` is what is served where nobody sets it."""

    low: float
    high: float
    default: float

    def allows(self, value: float) -> bool:
        """Whether it is within the range."""
        return self.low <= value <= self.high


PARAMETERS: Mapping[str, Parameter] = {
    "diversity": Parameter(0.0, 1.0, default=0.0),
}
"""By name. Whoever adds one reads it in app/serving/pipeline.py, where `diversity` is read."""


def defaults() -> dict[str, float]:
    """What is served now where no variant sets anything."""
    return {name: parameter.default for name, parameter in PARAMETERS.items()}
