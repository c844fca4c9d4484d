"""What the variants of a request change about its answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.experiments.assigning import Assigned, is_held_out


@dataclass(frozen=True, slots=True)
class Arm:
    """All variants of one request as one: experiments on one surface never set the same thing.

    variants:    name by experiment
    recommender: leads; those of the route stand behind it
    parameters:  by name, where the caller sets none: see app/experiments/parameters.py
    promotions:  False leaves them out
    chains:      by route, of when the holdout began whose control group the user is in; None: those of now
    """

    variants: Mapping[str, str] = field(default_factory=dict)
    recommender: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    promotions: bool = True
    chains: Mapping[str, Sequence[str]] | None = None

    def diversity(self, asked: float | None) -> float:
        """The caller's, else the variant's."""
        diversity: float = self.parameters.get("diversity", 0.0) if asked is None else asked
        return diversity


NO_ARM = Arm()


def arm_of(mine: Sequence[Assigned]) -> Arm:
    """What these variants come to."""
    if not mine:
        return NO_ARM
    variants = {each.experiment.key: each.variant.name for each in mine}
    if is_held_out(mine[0]):
        defaults = mine[0].experiment.defaults or {}
        return Arm(variants, parameters=defaults.get("parameters", {}), chains=defaults.get("chains"))
    parameters: dict[str, Any] = {}
    for each in mine:
        parameters |= each.variant.parameters
    return Arm(
        variants,
        recommender=next((each.variant.recommender for each in mine if each.variant.recommender is not None), None),
        parameters=parameters,
        promotions=all(each.variant.promotions for each in mine),
    )
