"""Which of the running experiments a request is in, and in which variant of each. Pure.

What decides is what was known before: the user's id, the surface, and the route as of this request, before any variant
had a say. A treatment may move users to another route (those who like more become `established` sooner), so whoever was
exposed once stays in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from app.experiments.assignment import variants_of
from app.experiments.definitions import Experiment, Variant

Run = tuple[str, int]
"""An experiment's key, and which time it was run."""


class Assigned(NamedTuple):
    """A user's variant. is_forced: the definition names the user; the hash was not asked."""

    experiment: Experiment
    variant: Variant
    is_forced: bool


def assigned(
    running: Iterable[Experiment], user_id: str, *, surface: str, route: str, exposed: Collection[Run] = ()
) -> tuple[Assigned, ...]:
    """The user's variants in the experiments that this request is in.

    running: holdouts first. Whoever is in the control group of one is in nothing else.
    exposed: experiments with a route in which the user has been before; these go on whatever the route is now
    """
    found: list[Assigned] = []
    concerned = [experiment for experiment in running if _concerns(experiment, surface, route, exposed)]
    numbers = variants_of([experiment.assignment for experiment in concerned], user_id)
    for experiment, number in zip(concerned, numbers, strict=True):
        if number is None:
            continue
        mine = Assigned(experiment, experiment.variants[number], user_id in experiment.forced)
        if is_held_out(mine):
            return (mine,)
        found.append(mine)
    return tuple(found)


def membership(running: Iterable[Experiment], user_id: str) -> Iterator[tuple[Experiment, Variant | None]]:
    """Each experiment with the user's variant, by the id alone; None where the user is not in it.

    running: holdouts first
    """
    is_out = False
    for experiment in running:
        number = None if is_out else experiment.assignment.variant_of(user_id)
        variant = None if number is None else experiment.variants[number]
        is_out = is_out or (experiment.holdout and variant is experiment.control)
        yield experiment, variant


def is_held_out(mine: Assigned) -> bool:
    """Whether the user gets what everybody got when this holdout began."""
    return mine.experiment.holdout and mine.variant is mine.experiment.control


def _concerns(experiment: Experiment, surface: str, route: str, exposed: Collection[Run]) -> bool:
    if experiment.holdout:
        return True
    if experiment.surface != surface:
        return False
    return experiment.route in (None, route) or (experiment.key, experiment.run) in exposed
