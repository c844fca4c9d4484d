"""What a replay found: the service beside the baselines, by route and by acquaintance, and how sure a difference is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import Mask
from models.evaluation.metrics import Estimate
from models.evaluation.replay import DECAYS, Ranks, hits_at, ndcg_at

SERVICE = "the service, as it routes"
CAVEAT = (
    "It measures agreement with what people did under what they were shown then, not what they would have done with "
    "these lists: whoever recommends what everybody was shown agrees more."
)
DRAWS = 2_000


class Cases(NamedTuple):
    """Whom a replay asked about.

    users: int32[cases], whose the case is; warm: bool[cases], whether the user had events before the cut
    """

    users: NDArray[np.int32]
    warm: Mask


@dataclass(frozen=True, slots=True)
class Run:
    """What the service answered to the cases, with the models of one seed.

    ranks:  int32[cases], 0 where the item was not in the list
    routes, recommenders: of each answer, as the service named them
    speed:  what the client saw of the service's speed, by name
    recipes: ranks of single recommenders that answered the same cases beside the service
    """

    seed: int
    ranks: Ranks
    routes: Sequence[str]
    recommenders: Sequence[str]
    speed: Mapping[str, float]
    recipes: Mapping[str, Ranks]

    def __post_init__(self) -> None:
        if not len(self.ranks) == len(self.routes) == len(self.recommenders):
            raise ValueError("an answer lacks its rank, its route or its recommender")

    @property
    def agreement(self) -> float:
        """The share of answers that put the item where the recommender that led them puts it alone, in this process.

        Well below 1, what the service knows is not what a replay thinks that it knows. NaN without recipes.
        """
        led = [
            alone[case] == rank
            for case, (rank, leader) in enumerate(zip(self.ranks.tolist(), self.recommenders, strict=True))
            if (alone := self.recipes.get(leader)) is not None
        ]
        return float(np.mean(led)) if led else float("nan")


class Accuracy(NamedTuple):
    """Means over cases."""

    hit_rate: float
    ndcg: float


class Table(NamedTuple):
    """Cells ready to be shown; the first column is a name, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def as_markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


@dataclass(frozen=True)
class Report:
    """A whole replay.

    title:     what was replayed
    counts:    of the log and its parts, by name
    baselines: ranks by name, in the order of `cases`, as are those of the runs
    runs:      one per seed
    """

    title: str
    counts: Mapping[str, int]
    k: int
    cases: Cases
    baselines: Mapping[str, Ranks]
    runs: Sequence[Run]

    @property
    def median(self) -> Run:
        """The run with the median NDCG@k, the lower of the two in the middle."""
        by_ndcg = sorted(self.runs, key=lambda run: self._accuracy(run.ranks).ndcg)
        return by_ndcg[(len(by_ndcg) - 1) // 2]

    @property
    def best_decay(self) -> str:
        """The decayed popularity with the highest NDCG@k, in hindsight: the hardest one to beat."""
        return max(DECAYS, key=lambda name: self._accuracy(self.baselines[name]).ndcg)

    def tables(self) -> list[Table]:
        """The median run against everything, by group, and all runs where there are several."""
        tables = [self._methods(), self._groups()]
        return [*tables, self._seeds()] if len(self.runs) > 1 else tables

    def as_markdown(self) -> str:
        counted = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        head = [f"# Replay of {self.title}", f"{counted}.", CAVEAT]
        tables = [table.as_markdown() for table in self.tables()]
        return "\n\n".join([*head, *(text.rstrip() for text in tables), self._remarks()]) + "\n"

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "counts": dict(self.counts),
            "k": self.k,
            "measures": CAVEAT,
            "best_decay": self.best_decay,
            "baselines": {name: self._accuracy(ranks)._asdict() for name, ranks in self.baselines.items()},
            "runs": [self._run_as_json(run) for run in self.runs],
            "median_seed": self.median.seed,
        }

    def remarks(self) -> list[str]:
        """What a table doesn't hold: speed, and who answered."""
        run = self.median
        speed = ", ".join(f"{name} {value:,.1f}" for name, value in run.speed.items())
        led = ", ".join(f"{name} {count:,}" for name, count in Counter(run.recommenders).most_common())
        remarks = [f"Speed: {speed}.", f"Answers led by: {led}."]
        if run.recipes:
            remarks.append(f"Answers with the item where their leader puts it alone: {run.agreement:.2%}.")
        return remarks

    def gains(self, run: Run, which: Mask | None = None) -> dict[str, Estimate]:
        """NDCG@k of the run minus that of each baseline, paired, users being what is drawn again.

        which: bool[cases], None for all
        """
        chosen = np.ones(len(run.ranks), np.bool_) if which is None else which
        own = ndcg_at(self.k, run.ranks[chosen])
        others = self._others(run)
        differences = np.stack([own - ndcg_at(self.k, ranks[chosen]) for ranks in others.values()], axis=1)
        return dict(zip(others, clustered_bootstrap(differences, self.cases.users[chosen], seed=0), strict=True))

    def _accuracy(self, ranks: Ranks, which: Mask | None = None) -> Accuracy:
        chosen = ranks if which is None else ranks[which]
        return Accuracy(float(hits_at(self.k, chosen).mean()), float(ndcg_at(self.k, chosen).mean()))

    def _others(self, run: Run) -> dict[str, Ranks]:
        return {**self.baselines, **{f"`{name}` alone": ranks for name, ranks in run.recipes.items()}}

    def _methods(self) -> Table:
        run = self.median
        gains = self.gains(run)
        others = sorted(self._others(run).items(), key=lambda named: -self._accuracy(named[1]).ndcg)
        rows = [(SERVICE, *_figures(self._accuracy(run.ranks)), "")]
        rows += [(name, *_figures(self._accuracy(ranks)), _signed(gains[name])) for name, ranks in others]
        gain = "the service's lead in NDCG, paired, 95 % by user"
        of = f" (the median of {len(self.runs)} seeds)" if len(self.runs) > 1 else ""
        return Table(f"Everything over the same cases{of}", ("", f"HR@{self.k}", f"NDCG@{self.k}", gain), rows)

    def _groups(self) -> Table:
        run, best = self.median, self.best_decay
        rows = []
        for name, which in self._masks(run):
            own, other = self._accuracy(run.ranks, which), self._accuracy(self.baselines[best], which)
            gain = self.gains(run, which)[best]
            rows.append((name, f"{which.sum():,}", *_figures(own), *_figures(other), _signed(gain)))
        columns = ("", "cases", "HR", "NDCG", "HR of the decay", "NDCG of the decay", "lead in NDCG")
        return Table(f"The service beside the best decay ({best}), by group", columns, rows)

    def _masks(self, run: Run) -> Iterator[tuple[str, Mask]]:
        yield "all", np.ones(len(run.ranks), np.bool_)
        routes = np.array(run.routes)
        yield from ((f"route {route}", routes == route) for route in sorted(set(run.routes)))
        warm = (("known before the cut", self.cases.warm), ("not known before", ~self.cases.warm))
        yield from ((name, which) for name, which in warm if which.any())

    def _seeds(self) -> Table:
        rows = []
        for run in self.runs:
            gain = self.gains(run)[self.best_decay]
            rows.append((str(run.seed), *_figures(self._accuracy(run.ranks)), _signed(gain)))
        return Table("Seeds of the training", ("seed", "HR", "NDCG", f"lead over {self.best_decay}"), rows)

    def _remarks(self) -> str:
        return "\n\n".join(self.remarks())

    def _run_as_json(self, run: Run) -> dict[str, Any]:
        return {
            "seed": run.seed,
            **self._accuracy(run.ranks)._asdict(),
            "groups": {
                name: {"cases": int(which.sum()), **self._accuracy(run.ranks, which)._asdict()}
                for name, which in self._masks(run)
            },
            "lead_in_ndcg": {name: gain._asdict() for name, gain in self.gains(run).items()},
            "agreement": None if np.isnan(run.agreement) else run.agreement,
            "recipes": {name: self._accuracy(ranks)._asdict() for name, ranks in run.recipes.items()},
            "speed": dict(run.speed),
        }


def clustered_bootstrap(
    values: NDArray[np.float64], users: NDArray[np.int32], *, seed: int, draws: int = DRAWS
) -> list[Estimate]:
    """The mean of each column over cases, and where 95 % of the means lie when users are drawn with replacement.

    A user's cases come together or not at all, for they are not independent (Cameron, Gelbach and Miller 2008).
    values: float64[cases, columns]; users: int32[cases]
    """
    _, cluster = np.unique(users, return_inverse=True)
    sizes = np.bincount(cluster).astype(np.float64)
    sums = np.stack([np.bincount(cluster, column) for column in values.T], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((draws, values.shape[1]))
    for draw in range(draws):
        times = np.bincount(rng.integers(0, len(sizes), len(sizes)), minlength=len(sizes))
        means[draw] = times @ sums / (times @ sizes)
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return [Estimate(*map(float, figures)) for figures in zip(values.mean(axis=0), low, high, strict=True)]


def _figures(accuracy: Accuracy) -> tuple[str, str]:
    return f"{accuracy.hit_rate:.4f}", f"{accuracy.ndcg:.4f}"


def _signed(gain: Estimate) -> str:
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
