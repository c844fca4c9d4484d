"""What is wrong with a definition, by itself and beside the experiments that run. Pure; says it field by field."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from app.errors import FieldError
from app.experiments.definitions import Experiment, Variant
from app.experiments.parameters import PARAMETERS

OF_PLAYERS = {"route": "listening", "surface": "player"}
"""What a page of POST /recommend/next says of itself. It takes part in no experiment: see app/serving/next_track.py."""

WEIGHTS_OFF_BY = 1e-6
"""So far the weights' sum may be from 1: three thirds in decimal are. GrowthBook's SDKs let pass a hundredth."""


def flaws(experiment: Experiment, recommenders: Collection[str]) -> list[FieldError]:
    """What is wrong with the definition by itself. recommenders: those that are served now."""
    return [
        *_flaws_of_weights(experiment.variants),
        *_flaws_of_names(experiment),
        *_flaws_of_players(experiment),
        *(flaw for number, variant in enumerate(experiment.variants) for flaw in _flaws_of(variant, number)),
        *strangers(experiment, recommenders),
        *(_flaws_of_a_holdout(experiment) if experiment.holdout else ()),
    ]


def strangers(experiment: Experiment, recommenders: Collection[str]) -> list[FieldError]:
    """The variants whose recommender is not served."""
    known = ", ".join(sorted(recommenders))
    return [
        FieldError(
            ("body", "variants", number, "recommender"),
            f"{variant.recommender!r} is not in the release that is served; there are: {known}",
        )
        for number, variant in enumerate(experiment.variants)
        if variant.recommender is not None and variant.recommender not in recommenders
    ]


def conflicts(experiment: Experiment, others: Iterable[Experiment]) -> list[FieldError]:
    """Why it can't run beside these.

    Two that set the same thing on one surface would overwrite each other, unless no user can be in both: that needs
    ranges of one namespace that do not overlap. Routes don't keep them apart, for a user who was exposed stays in when
    the route becomes another.

    Holdouts run one at a time: who is held out is in nothing else, so a second one would take its control group from
    the first one's compared users alone, whose sample ratio would be off for good.
    """
    found: list[FieldError] = []
    for other in others:
        if experiment.holdout and other.holdout:
            said = f"is kept by {other.key!r} already, and whom it holds out no other can have: stop it first"
            found.append(FieldError(("body", "holdout"), said))
        mine, theirs = experiment.namespace, other.namespace
        if mine is not None and theirs is not None and mine.name == theirs.name:
            if max(mine.start, theirs.start) < min(mine.end, theirs.end):
                said = (
                    f"overlaps [{theirs.start}, {theirs.end}) of {other.key!r}, which runs in namespace {mine.name!r}"
                )
                found.append(FieldError(("body", "namespace", "range"), said))
        elif experiment.surface == other.surface:
            found += _both_set(experiment, other)
    return found


def warnings(experiment: Experiment, others: Sequence[Experiment]) -> list[str]:
    """What is allowed, and worth knowing."""
    return [*_of_namespaces(experiment, others), *_of_seeds(experiment, others)]


def sets(experiment: Experiment) -> frozenset[str]:
    """What its variants set: `recommender`, `promotions`, and parameters by name."""
    return frozenset(name for variant in experiment.variants for name in _sets(variant))


def _sets(variant: Variant) -> Iterator[str]:
    if variant.recommender is not None:
        yield "recommender"
    if not variant.promotions:
        yield "promotions"
    yield from variant.parameters


def _both_set(experiment: Experiment, other: Experiment) -> Iterator[FieldError]:
    shared = sets(experiment) & sets(other)
    said = f"is set by {other.key!r} too, which runs on surface {other.surface!r}; give both ranges of one namespace"
    for number, variant in enumerate(experiment.variants):
        for name in _sets(variant):
            if name in shared:
                place = (name,) if name in ("recommender", "promotions") else ("parameters", name)
                yield FieldError(("body", "variants", number, *place), said)


def _flaws_of_weights(variants: Sequence[Variant]) -> Iterator[FieldError]:
    total = sum(variant.weight for variant in variants)
    if abs(total - 1) > WEIGHTS_OFF_BY:
        yield FieldError(("body", "variants"), f"the weights must sum to 1, not {total:.6g}")


def _flaws_of_names(experiment: Experiment) -> Iterator[FieldError]:
    first: dict[str, int] = {}
    for number, variant in enumerate(experiment.variants):
        if first.setdefault(variant.name, number) != number:
            place = ("body", "variants", number, "name")
            yield FieldError(place, f"{variant.name!r} is variant {first[variant.name]} already")
    for user_id, name in experiment.forced.items():
        if name not in first:
            yield FieldError(("body", "forced", user_id), f"there is no variant {name!r}")


def _flaws_of_players(experiment: Experiment) -> Iterator[FieldError]:
    for name, value in OF_PLAYERS.items():
        if getattr(experiment, name) == value:
            said = f"{value!r} is POST /recommend/next, which takes part in no experiment: nobody would be in it"
            yield FieldError(("body", name), said)


def _flaws_of(variant: Variant, number: int) -> Iterator[FieldError]:
    for name, value in variant.parameters.items():
        place, parameter = ("body", "variants", number, "parameters", name), PARAMETERS.get(name)
        if parameter is None:
            yield FieldError(place, f"is no parameter; there are: {', '.join(sorted(PARAMETERS))}")
        elif not parameter.allows(value):
            yield FieldError(place, f"must be from {parameter.low:g} to {parameter.high:g}, not {value:g}")


def _flaws_of_a_holdout(experiment: Experiment) -> Iterator[FieldError]:
    if len(experiment.variants) != 2:
        yield FieldError(("body", "variants"), "of a holdout are two: who is held out, and with whom they are compared")
    for number, variant in enumerate(experiment.variants):
        if list(_sets(variant)):
            said = "a holdout's variants set nothing: the first gets what was served when it started"
            yield FieldError(("body", "variants", number), said)
    if experiment.namespace is not None:
        yield FieldError(("body", "namespace"), "a holdout is hashed first, outside every namespace")
    if experiment.route is not None:
        yield FieldError(("body", "route"), "a holdout holds on every route")


def _of_namespaces(experiment: Experiment, others: Sequence[Experiment]) -> Iterator[str]:
    mine = experiment.namespace
    names = {other.namespace.name for other in others if other.namespace is not None}
    if mine is not None and names - {mine.name}:
        said = ", ".join(sorted({mine.name, *names}))
        yield (
            f"namespaces {said} are in use together: each keeps its own experiments apart, but who is in a range of one"
            " is not independent of who is in a range of another"
        )


def _of_seeds(experiment: Experiment, others: Sequence[Experiment]) -> Iterator[str]:
    for other in others:
        if other.seed == experiment.seed and other.key != experiment.key:
            yield f"{other.key!r} has the same seed: both split users alike, so their effects can't be told apart"
