"""How often the intervals of models.evaluation.off_policy hold the truth, and how often its checks raise the alarm.

    python -m benchmarks.off_policy_coverage [--logs 1000] [--users 300]

On made-up logs whose truth is known by enumeration (benchmarks/off_policy_logs.py). Prints, at several distances
between the policy that served and the target: each estimator's coverage where people do what it assumes, and where they
do not; then how often right and wrong logs are found to be wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from benchmarks.off_policy_logs import BEHAVIOURS, Behaviour, Policy, by_rank, drawn_logs, truth_of
from models.evaluation.off_policy import single, slates
from models.evaluation.off_policy.checks import ALARM, effective_size, mean_weight, shown_as_logged
from models.evaluation.off_policy.intervals import interval_of
from models.evaluation.off_policy.log import SingleLog, SlateLog
from models.evaluation.off_policy.methods import Weighed

LOGGING = by_rank("served, temperature 0.7", 0.7)
TARGETS = {
    "near": by_rank("temperature 0.4", 0.4),
    "swapped": by_rank("neighbours swapped", 0.7, [1, 0, 3, 2, 5, 4]),
    "far": by_rank("the first pair behind the second", 0.7, [2, 3, 0, 1, 5, 4]),
}
HEADLINE = "swapped"
WRONG = {
    "right": LOGGING,
    "written at temperature 0.6": by_rank("0.6", 0.6),
    "written at temperature 0.9": by_rank("0.9", 0.9),
    "written for another order": by_rank("other order", 0.7, [1, 0, 2, 3, 4, 5]),
    "written as uniform": Policy("uniform", np.zeros_like(LOGGING.logits)),
}


class Estimator(NamedTuple):
    """An estimator of the first place or of whole lists, and what people may do for it to be right, the most last."""

    make: Callable[[SingleLog], Weighed] | Callable[[SlateLog], Weighed]
    of_first: bool
    allows: tuple[Behaviour, ...]

    @property
    def name(self) -> str:
        return self.make.__name__


_CASCADE: tuple[Behaviour, ...] = ("independent", "cascade")
ESTIMATORS = (
    *(Estimator(make, True, _CASCADE) for make in (single.ips, single.snips, single.dm, single.dr)),
    *(Estimator(make, False, ("independent",)) for make in (slates.iips, slates.iips_self_normalised)),
    *(Estimator(make, False, _CASCADE) for make in (slates.rips, slates.rips_self_normalised, slates.cascade_dr)),
    *(Estimator(make, False, BEHAVIOURS) for make in (slates.sips, slates.sips_self_normalised)),
)


class Coverage(NamedTuple):
    """Over many logs.

    covered:       the share of intervals that hold the truth
    above, below:  the share of intervals that are wholly above, or below it
    by_student:    the share that Student's interval would hold, which knows nothing of skewness
    effective_size: of the mean log
    width:         of the mean interval
    """

    covered: float
    above: float
    below: float
    by_student: float
    effective_size: float
    width: float


def coverage(
    target: Policy, *, logs: int, users: int, behaviours: Iterable[Behaviour] | None = None
) -> dict[tuple[str, Behaviour], Coverage]:
    """By estimator and behaviour; behaviours None: each estimator's own, the one that asks most of it."""
    cells = [(each, behaviour) for each in ESTIMATORS for behaviour in behaviours or each.allows[-1:]]
    found: dict[tuple[str, Behaviour], list[tuple[float, ...]]] = {(e.name, b): [] for e, b in cells}
    for seed in range(logs):
        drawn = drawn_logs(seed, users=users, logging=LOGGING, target=target)
        first = {behaviour: log.place(0) for behaviour, log in drawn.items()}
        for estimator, behaviour in cells:
            weighed = estimator.make((first if estimator.of_first else drawn)[behaviour])  # type: ignore[arg-type]
            truth = truth_of(target, behaviour)[estimator.of_first]
            interval = interval_of(weighed.values, drawn[behaviour].users)
            above, below = interval.low > truth, interval.high < truth
            reach = stdtrit(users - 1, 0.975) * interval.standard_error
            figures = (
                abs(interval.mean - truth) <= reach,
                effective_size(weighed.weights),
                interval.high - interval.low,
            )
            found[estimator.name, behaviour].append((not (above or below), above, below, *figures))
    return {cell: Coverage(*np.mean(rows, axis=0).tolist()) for cell, rows in found.items()}


def alarms(logged_as: Policy, *, logs: int, users: int) -> NDArray[np.float64]:
    """float64[2]: the share of logs that the chi-square, and that the mean weights of RIPS, find wrong."""
    found = np.zeros((logs, 2))
    for seed in range(logs):
        target = TARGETS[HEADLINE]
        log = drawn_logs(seed, users=users, logging=LOGGING, target=target, logged_as=logged_as)["cascade"]
        found[seed] = (
            shown_as_logged(log).p_value < ALARM,
            mean_weight(slates.rips(log), log.users).p_value < ALARM,
        )
    return found.mean(axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=1_000)
    parser.add_argument("--users", type=int, default=300)
    asked = parser.parse_args()
    for name, target in TARGETS.items():
        print(f"\nAs assumed: {asked.logs} logs of {asked.users} users, target {name}: {target.name}")
        _print(coverage(target, logs=asked.logs, users=asked.users))
    few, many = asked.logs // 5, 4 * asked.users
    print(f"\nWhatever people do: {few} logs of {many} users, target far")
    _print(coverage(TARGETS["far"], logs=few, users=many, behaviours=BEHAVIOURS))
    print(f"\nAlarms: {few} logs of {asked.users} users\n| propensities | chi-square | mean weight |\n|---|---|---|")
    for name, logged_as in WRONG.items():
        counted, weighed = alarms(logged_as, logs=few, users=asked.users)
        print(f"| {name} | {counted:.1%} | {weighed:.1%} |", flush=True)


def _print(rows: dict[tuple[str, Behaviour], Coverage]) -> None:
    allowed = {each.name: each.allows for each in ESTIMATORS}
    print("| estimator | people | covered | too high | too low | by Student's t | effective lists | width | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (estimator, behaviour), row in rows.items():
        kept = "" if behaviour in allowed[estimator] else "assumes less than they do"
        print(
            f"| {estimator} | {behaviour} | {row.covered:.1%} | {row.above:.1%} | {row.below:.1%} "
            f"| {row.by_student:.1%} | {row.effective_size:.0f} | {row.width:.3f} | {kept} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
