"""Whether a result can be trusted: sample ratios, lost exposures, what was pruned; and what the figure is of. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.errors import Conflict
from app.experiments.definitions import Experiment
from app.experiments.metrics import Metric
from app.experiments.population import TWO_VARIANTS, Population, Scope
from app.experiments.statistics import sample_ratio, sample_ratio_by
from app.experiments.statistics.sample_ratio import SMALL

MOST_LOST = 0.001
"""Share of exposures: with more lost the result is refused, for who was lost need not be like who was not."""
MOST_IN_TWO = 0.01
"""Share of users seen in two variants; more are no accident."""
MOST_SLICES = 200
"""Of one sort that are answered, beside those with a mismatch; all of them are tested."""

ESTIMAND = {
    "shared": "The effect of giving the variant to its share of the users while all arms learn from the same counters"
    " and training data: what one arm's users do also changes what the others' are shown. Given to everybody, its"
    " effect may be another.",
    "split": "The effect of giving the variant to its share of the users while each arm learns from its own users"
    " alone. Given to everybody, it would learn from more of them.",
}
HOLDOUT_ESTIMAND = (
    "The effect of everything that was shipped or tried since the holdout began, together, on those who got it. "
)


@dataclass(frozen=True, slots=True)
class Slice:
    """The users first exposed on a day, on a route, or by a worker."""

    value: str
    counts: Mapping[str, int]
    p_value: float
    is_mismatch: bool


@dataclass(frozen=True, slots=True)
class SampleRatios:
    """Whether each variant has the share of the users that its weight promises.

    expected: users by variant, as the weights would have it
    by:       the same for each `day`, `route` and `worker`, the smallest together as `(small)`; of many slices one is
              odd by chance, so their p-values are adjusted by Holm
    """

    is_mismatch: bool
    p_value: float
    threshold: float
    counts: Mapping[str, int]
    expected: Mapping[str, float]
    by: Mapping[str, Sequence[Slice]]


@dataclass(frozen=True, slots=True)
class Losses:
    """Exposures that happened and could not be written down. share: of all exposures, 0–1."""

    lost: int
    share: float
    by_variant: Mapping[str, int]


def sample_ratios(population: Population, experiment: Experiment) -> SampleRatios:
    """Of the users in one arm only who are not left out; forced ones among them would not have been drawn."""
    weights = {variant.name: variant.weight for variant in experiment.variants}
    overall = sample_ratio(list(population.in_arms.values()), list(weights.values()))
    expected = {name: population.users * weight / sum(weights.values()) for name, weight in weights.items()}
    by = {what: _slices(values, list(weights.values())) for what, values in population.by.items()}
    return SampleRatios(overall.is_mismatch, overall.p_value, overall.threshold, population.in_arms, expected, by)


def _slices(values: Mapping[str, Mapping[str, int]], weights: Sequence[float]) -> tuple[Slice, ...]:
    judged = sample_ratio_by({value: list(counts.values()) for value, counts in values.items()}, weights)
    small = [counts for value, counts in values.items() if value not in judged.p_values]
    listed = {value: counts for value, counts in values.items() if value in judged.p_values}
    if small:
        listed[SMALL] = {name: sum(counts[name] for counts in small) for name in small[0]}
    slices = [
        Slice(value, counts, judged.p_values[value], value in judged.mismatched) for value, counts in listed.items()
    ]
    return tuple(each for number, each in enumerate(slices) if number < MOST_SLICES or each.is_mismatch)


def losses_of(lost: Mapping[str, int], population: Population, experiment: Experiment) -> Losses:
    """Raises Conflict where too many were lost, of all or of any variant."""
    total = sum(lost.values())
    found = Losses(total, _share(total, population.users), lost)
    for name, count in lost.items():
        kept = population.in_arms[name]
        if _share(count, kept) > MOST_LOST or found.share > MOST_LOST:
            listed = ", ".join(f"{each} lost {lost[each]:,} beside {population.in_arms[each]:,} kept" for each in lost)
            raise Conflict(
                f"experiment {experiment.key!r} run {experiment.run} has no result: more than {MOST_LOST:.1%} of the"
                f" exposures were lost ({listed}), and who was lost need not be like who was not; start it anew"
            )
    return found


def _share(lost: int, kept: int) -> float:
    return lost / (lost + kept) if lost else 0.0


def problems(
    ratios: SampleRatios,
    population: Population,
    metrics: Sequence[Metric],
    kept_from: Mapping[str, datetime],
    scope: Scope,
) -> Iterator[str]:
    """What takes the trust out of a result, the worst first, in words; nothing where all is well.

    kept_from: from when on there is everything, by what it is; absent for what was never pruned
    """
    stopped_at, exposures_from = scope.experiment.stopped_at, kept_from.get("exposures")
    if stopped_at is not None and exposures_from is not None and stopped_at < exposures_from:
        yield f"it stopped on {stopped_at:%Y-%m-%d}, and exposures are pruned by now: nobody is left to count"
    if ratios.is_mismatch:
        yield (
            f"sample ratio mismatch (p = {ratios.p_value:.2g}, below {ratios.threshold:g}): {_counted(ratios.counts)},"
            f" where the weights promise {_counted(ratios.expected)}. Something decides who is counted; find it before"
            " believing any figure"
        )
    for what, slices in ratios.by.items():
        odd = [each for each in slices if each.is_mismatch]
        if odd:
            yield (
                f"sample ratio mismatch by {what}: "
                + "; ".join(f"{each.value} has {_counted(each.counts)} (p = {each.p_value:.2g})" for each in odd[:3])
                + (f"; and {len(odd) - 3} more" if len(odd) > 3 else "")
            )
    in_two = population.left_out[TWO_VARIANTS]
    if in_two > MOST_IN_TWO * (in_two + population.users):
        yield f"{in_two:,} users were seen in two variants: assignment did not stick"
    for what in _looked_at(metrics):
        if what in kept_from and kept_from[what] > scope.started_at:
            yield (
                f"{what} from before {kept_from[what]:%Y-%m-%d} were pruned, and the experiment began on"
                f" {scope.started_at:%Y-%m-%d}: what happened before is not counted"
            )


def notes(population: Population, scope: Scope) -> Iterator[str]:
    """What a reader should know that takes nothing from the trust."""
    waiting = sum(population.waiting.values())
    if waiting:
        yield f"{waiting:,} users are not in the figures yet: their window is not over"
    if not scope.is_final:
        yield (
            "no always-valid interval: the totals of users grow until the experiment stops. Give a `window`, after"
            " which a user's figure is final"
        )


def estimand_of(experiment: Experiment) -> str:
    """What the difference is an estimate of."""
    return (HOLDOUT_ESTIMAND if experiment.holdout else "") + ESTIMAND[experiment.data]


def _looked_at(metrics: Sequence[Metric]) -> list[str]:
    tables = ["events"]
    if any(metric.is_of_slates for metric in metrics):
        tables.append("shown pages")
    if any(metric.aggregate == "rate_on_screen" or metric.kind == "impression" for metric in metrics):
        tables.append("events of what was on screen")
    return tables


def _counted(counts: Mapping[str, int] | Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:,.0f}" for name, count in counts.items())
