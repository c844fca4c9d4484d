"""How often the analysis of experiments finds what isn't there, and what is: simulated experiments through `compare`.

    python -m benchmarks.experiments_aa [--experiments 2000] [--seed 1]

The users return: they enter on the first day that they come, their totals grow from day to day until their window
closes, the active ones come first and most, and what they did before is known of most. Every experiment is looked at
every evening. The bounds are those that a binomial of the stated chance stays in 99 times of a hundred.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import binom

from app.experiments.statistics import Comparison, Outcomes, compare, minimum_detectable_effect

Floats = NDArray[np.float64]
DAYS, WINDOW_DAYS = 8, 3
USERS = 600
"""Who might come to one experiment; about one in nine never does."""
ALPHA, POWER = 0.05, 0.8
PRINTED_EVERY = 100


@dataclass(frozen=True)
class Setting:
    """One kind of metric, and how it is analysed."""

    kind: str
    cuped: bool = False
    winsor: float | None = None

    @property
    def label(self) -> str:
        return self.kind + (", CUPED" if self.cuped else "") + (f", cut at {self.winsor:.0%}" if self.winsor else "")

    def compare(self, control: Outcomes, variant: Outcomes) -> Comparison:
        return compare(control, variant, alpha=ALPHA, cuped=self.cuped, winsor=self.winsor, planned_users=USERS)


COLUMNS = {
    "has liked": ("likes", None),
    "likes per user": ("likes", None),
    "click rate": ("clicks", "shown"),
    "listening time": ("minutes", None),
    "mean rating": ("ratings", "rated"),
}
KINDS = tuple(COLUMNS)
SETTINGS = tuple(
    Setting(kind, cuped, winsor)
    for kind in KINDS
    for winsor in ((None, 0.99) if kind == "listening time" else (None,))
    for cuped in (False, True)
)


@dataclass(frozen=True)
class Experiment:
    """One experiment in which the variant does nothing.

    is_variant, entered: (users,), the latter the day of the first exposure
    totals: by kind, numerator and denominator (users, days), as they stand on the evening of each day
    before: by kind, numerator and denominator (users,), nan without a past
    """

    is_variant: NDArray[np.bool_]
    entered: NDArray[np.intp]
    totals: dict[str, tuple[Floats, Floats | None]]
    before: dict[str, tuple[Floats, Floats | None]]

    def on(self, day: int, kind: str, *, with_before: bool = True) -> tuple[Outcomes, Outcomes]:
        """What control and variant look like on the evening of a day, windows still open among them."""
        present = self.entered <= day
        is_complete = self.entered + WINDOW_DAYS - 1 <= day
        numerator, denominator = self.totals[kind]
        before_numerator, before_denominator = self.before[kind] if with_before else (None, None)
        arms = (present & ~self.is_variant, present & self.is_variant)
        control, variant = (
            Outcomes(
                numerator[users, day],
                _of(denominator, (users, day)),
                _of(before_numerator, users),
                _of(before_denominator, users),
                is_complete[users],
            )
            for users in arms
        )
        return control, variant


def _of(array: Floats | None, which: Any) -> Floats | None:
    return None if array is None else array[which]


def experiment(rng: np.random.Generator, *, users: int = USERS) -> Experiment:
    """People with tastes and habits of their own, who come as often as they are wont to."""
    habit = rng.gamma(1.2, 0.4, users)  # sessions a day
    tastes = {
        "liking": rng.gamma(0.5, 0.6, users),
        "clicking": rng.beta(2.0, 18.0, users),
        "minutes": rng.normal(2.0, 0.8, users),
        "rating": rng.normal(3.5, 0.8, users),
    }
    sessions = rng.poisson(habit[:, np.newaxis], (users, DAYS))
    came = sessions.any(axis=1)
    entered = np.where(came, (sessions > 0).argmax(axis=1), DAYS)
    day = np.arange(DAYS)
    counted = (day >= entered[:, np.newaxis]) & (day < entered[:, np.newaxis] + WINDOW_DAYS)
    after = _done(rng, sessions * counted, {name: taste[:, np.newaxis] for name, taste in tastes.items()})
    past = rng.poisson(habit * DAYS)
    has_past = (past > 0) & (rng.random(users) < 0.8)
    before = _done(rng, past, tastes)
    return Experiment(
        is_variant=rng.random(users) < 0.5,
        entered=entered,
        totals={kind: _metric(kind, {name: done.cumsum(axis=1) for name, done in after.items()}) for kind in KINDS},
        before={kind: _known(_metric(kind, before), has_past) for kind in KINDS},
    )


def _done(rng: np.random.Generator, sessions: NDArray[np.int64], tastes: dict[str, Floats]) -> dict[str, Floats]:
    """What is done in that many sessions, by name; arrays shaped like them."""
    active = sessions > 0
    number = sessions[active]
    taste = {name: np.broadcast_to(value, sessions.shape)[active] for name, value in tastes.items()}
    rated = rng.binomial(number, 0.6)
    found = {
        "likes": rng.poisson(number * taste["liking"]),
        "shown": 8.0 * number,
        "clicks": rng.binomial(8 * number, taste["clicking"]),
        "minutes": number * rng.lognormal(taste["minutes"], 1.2),
        "rated": rated,
        "ratings": rated * taste["rating"] + np.sqrt(rated) * rng.normal(0.0, 1.0, len(number)),
    }
    done = {name: np.zeros(sessions.shape) for name in found}
    for name, values in found.items():
        done[name][active] = values
    return done


def _metric(kind: str, totals: dict[str, Floats]) -> tuple[Floats, Floats | None]:
    if kind == "has liked":
        return np.minimum(totals["likes"], 1.0), None
    numerator, denominator = COLUMNS[kind]
    return totals[numerator], totals[denominator] if denominator else None


def _known(metric: tuple[Floats, Floats | None], has_past: NDArray[np.bool_]) -> tuple[Floats, Floats | None]:
    numerator, denominator = metric
    return (
        np.where(has_past, numerator, np.nan),
        None if denominator is None else np.where(has_past, denominator, np.nan),
    )


def experiments(number: int, seed: int, **size: int) -> Iterator[tuple[int, Experiment]]:
    """The same ones for the same seed, however many."""
    for one in range(number):
        yield one, experiment(np.random.default_rng([seed, one]), **size)


@dataclass(frozen=True)
class Peeked:
    """Whether something was found: at the one planned look, on the last evening; on any evening by the interval for one
    look; by the one for every look; and by the latter where totals that still grow are taken for final, which nothing
    justifies (docs/decisions/0018)."""

    at_the_end: bool
    one_look: bool
    every_look: bool
    on_growing: bool
    looks_judged: int


def peek(course: Experiment, setting: Setting, *, with_growing: bool = False) -> Peeked:
    """Looks at the experiment every evening."""
    found = [course.on(day, setting.kind, with_before=setting.cuped) for day in range(DAYS)]
    looks = [setting.compare(*arms) for arms in found]
    taken = [setting.compare(*map(_as_if_final, arms)) for arms in found] if with_growing else []
    return Peeked(
        at_the_end=_is_below(looks[-1].p_value),
        one_look=any(_is_below(look.p_value) for look in looks),
        every_look=any(_is_below(look.sequential_p_value) for look in looks),
        on_growing=any(_is_below(look.sequential_p_value) for look in taken),
        looks_judged=sum(look.sequential_p_value is not None for look in looks),
    )


def _as_if_final(outcomes: Outcomes) -> Outcomes:
    return replace(outcomes, is_complete=np.ones(outcomes.users, dtype=np.bool_))


def is_found_at_the_end(course: Experiment, setting: Setting, effect: float = 0.0) -> bool:
    """Whether the one planned look, on the last evening, finds a difference. effect: planted, in the metric's unit."""
    control, variant = course.on(DAYS - 1, setting.kind, with_before=setting.cuped)
    return _is_below(setting.compare(control, planted(variant, setting.kind, effect)).p_value)


def planted(variant: Outcomes, kind: str, effect: float) -> Outcomes:
    """The same users with a metric higher by `effect`: a share of those who had not liked now did, others did more."""
    if effect == 0.0:
        return variant
    if kind == "has liked":
        rng = np.random.default_rng(variant.users)
        moved = rng.random(variant.users) < effect / np.mean(variant.numerator == 0.0)
        return replace(variant, numerator=np.maximum(variant.numerator, moved))
    return replace(
        variant, numerator=variant.numerator + effect * (1.0 if variant.denominator is None else variant.denominator)
    )


def effects_to_find(settings: Sequence[Setting], seed: int, *, pilots: int = 300) -> dict[Setting, float]:
    """What the power calculation promises to find with chance POWER, from other experiments of the same size.

    The same size, since the cut of a heavy tail lies further out, on average, the fewer users there are.
    """
    squares: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for _, course in experiments(pilots, seed + 1_000_000):
        for setting in settings:
            past = setting.compare(*course.on(DAYS - 1, setting.kind, with_before=setting.cuped))
            squares[setting].append(minimum_detectable_effect(past, alpha=ALPHA, power=POWER) ** 2)
    return {setting: math.sqrt(np.mean(found)) for setting, found in squares.items()}


def is_found_while_filling_up(seed: int, *, users: int = 1_000, looks: int = 100) -> bool:
    """Whether intervals made for every look, misused on totals that grow, find something where nothing is.

    All users are in from the first look on; their share that has come back goes from 1 % to 99 %.
    """
    rng = np.random.default_rng(seed)
    returns, is_complete = rng.random((2, users // 2)), np.ones(users // 2, dtype=np.bool_)
    for share in expit(np.linspace(logit(0.01), logit(0.99), looks)):
        control, variant = (Outcomes((when < share).astype(np.float64), is_complete=is_complete) for when in returns)
        if _is_below(compare(control, variant, planned_users=users).sequential_p_value):
            return True
    return False


def bounds(number: int, chance: float) -> tuple[int, int]:
    """What a count of that many tries stays in 99 times of a hundred."""
    low, high = binom.ppf([0.005, 0.995], number, chance)
    return int(low), int(high)


def _is_below(p_value: float | None) -> bool:
    return p_value is not None and p_value < ALPHA


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    effects = effects_to_find(SETTINGS, asked.seed)
    counts: dict[Setting, Counter[str]] = {setting: Counter() for setting in SETTINGS}
    filled = 0
    for one, course in experiments(asked.experiments, asked.seed):
        filled += is_found_while_filling_up(asked.seed + one)
        for setting in SETTINGS:
            peeked = peek(course, setting, with_growing=not setting.cuped)
            counts[setting].update(
                end=peeked.at_the_end,
                one=peeked.one_look,
                every=peeked.every_look,
                growing=peeked.on_growing,
                power=is_found_at_the_end(course, setting, effects[setting]),
            )
        done = one + 1
        if done % PRINTED_EVERY == 0 or done == asked.experiments:
            report(done, counts)
            print(
                f"Always-valid, misused on shares that fill up while nobody new comes: {filled / done:.2%}\n",
                flush=True,
            )


def report(number: int, counts: dict[Setting, Counter[str]]) -> None:
    """The table, in shares of all experiments."""
    low, high = (bound / number for bound in bounds(number, ALPHA))
    weak, strong = (bound / number for bound in bounds(number, POWER))
    print(f"{number} experiments of {USERS} users, {DAYS} days, windows of {WINDOW_DAYS} days")
    print(f"In bounds: false positives {low:.2%}–{high:.2%}, power {weak:.1%}–{strong:.1%}")
    print(f"{'':34}{'one look':>10}{'peeking: one-look':>20}{'always-valid':>14}{'on growing':>12}{'power':>8}")
    for setting, count in counts.items():
        end, one, every, growing, power = (count[name] / number for name in ("end", "one", "every", "growing", "power"))
        misused = "" if setting.cuped else f"{growing:.2%}"
        print(f"{setting.label:34}{end:10.2%}{one:20.2%}{every:14.2%}{misused:>12}{power:8.1%}")


if __name__ == "__main__":
    main()
