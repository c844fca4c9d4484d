"""Whether what users did before a date explains as much of what they did after it as CUPED takes out. Real users.

    python -m benchmarks.experiments_cuped [--splits 1000] [--seed 1]

MovieTweetings (in demo/) and, where it lies beside the project, Deskdrop. Everybody who did something after the date is
in, split into two halves that nobody treats differently, again and again. Three figures have to agree:

predicted:      the squared correlation of before and after, on one half of the users
out of sample:  what the coefficients of that half take out of the variance on the other half
over splits:    how much less the differences vary that `compare` finds with CUPED than those without
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.experiments.statistics import Outcomes, compare

Floats = NDArray[np.float64]
ROOT = Path(__file__).parents[1]
MOVIETWEETINGS = ROOT / "demo" / "movietweetings-100k" / "ratings.dat.gz"
DESKDROP = ROOT.parent / "shared" / "data" / "posts" / "deskdrop" / "users_interactions.csv.gz"


@dataclass(frozen=True)
class Repeated:
    """How much each user did after a date and before it, cut at 99 %; nan for those not seen before it."""

    after: Floats
    before: Floats


@dataclass(frozen=True)
class Reduction:
    """Shares of the variance taken out."""

    predicted: float
    out_of_sample: float
    over_splits: float
    reported: float
    """What `compare` says itself, on average."""


def movietweetings() -> Repeated:
    """Ratings by user."""
    with gzip.open(MOVIETWEETINGS, "rt") as lines:
        rows = [line.rstrip("\n").split("::") for line in lines]
    return _halved([(user, int(time)) for user, _, _, time in rows])


def deskdrop() -> Repeated | None:
    """Events by reader; None where the data are not at hand."""
    if not DESKDROP.exists():
        return None
    with gzip.open(DESKDROP, "rt", newline="") as lines:
        return _halved([(row["personId"], int(row["timestamp"])) for row in csv.DictReader(lines)])


def _halved(events: list[tuple[str, int]]) -> Repeated:
    """Before and after the median event."""
    date = np.median([time for _, time in events])
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for user, time in events:
        counts[user][int(time >= date)] += 1
    before, after = np.array([both for both in counts.values() if both[1]], dtype=np.float64).T
    return Repeated(_cut(after), np.where(before > 0, _cut(before), np.nan))


def _cut(numbers: Floats) -> Floats:
    """As an analysis would: a few users with hundreds of events decide a correlation, and another half has others."""
    return np.minimum(numbers, np.quantile(numbers[numbers > 0], 0.99))


def reduction(users: Repeated, *, splits: int, seed: int) -> Reduction:
    """All four figures, the first two as means over as many random halves of the users."""
    rng = np.random.default_rng(seed)
    is_missing = np.isnan(users.before)
    covariates = np.stack([np.ones(len(is_missing)), np.where(is_missing, 0.0, users.before), is_missing], axis=1)
    predicted, outside, differences, reported = [], [], [], []
    for _ in range(splits):
        first = rng.random(len(is_missing)) < 0.5
        theta, *_ = np.linalg.lstsq(covariates[first], users.after[first])
        predicted.append(np.corrcoef(users.after[first], covariates[first] @ theta)[0, 1] ** 2)
        left = users.after - covariates @ theta
        outside.append(1.0 - left[~first].var() / users.after[~first].var())
        arms = [Outcomes(users.after[half], before_numerator=users.before[half]) for half in (first, ~first)]
        with_past, without = compare(*arms), compare(*arms, cuped=False)
        differences.append((with_past.difference, without.difference))
        reported.append(with_past.variance_reduction)
    narrow, wide = np.var(differences, axis=0)
    return Reduction(
        float(np.mean(predicted)), float(np.mean(outside)), float(1.0 - narrow / wide), float(np.mean(reported))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(f"{'':16}{'users':>8}{'no past':>9}{'predicted':>11}{'out of sample':>15}{'over splits':>13}{'reported':>10}")
    for name, users in (("MovieTweetings", movietweetings()), ("Deskdrop", deskdrop())):
        if users is None:
            print(f"{name:16} not at hand: {DESKDROP}")
            continue
        found = reduction(users, splits=asked.splits, seed=asked.seed)
        print(
            f"{name:16}{len(users.after):8,}{np.isnan(users.before).mean():9.1%}{found.predicted:11.1%}"
            f"{found.out_of_sample:15.1%}{found.over_splits:13.1%}{found.reported:10.1%}"
        )


if __name__ == "__main__":
    main()
