"""Everything that could be served, judged on what people did after a moment that is the same for all.

Full ranking: every item competes, none is sampled. What a user had met before is not asked for again. A user is
*warm* when the training data knows them, else *cold*; cold users get what the route `new` gives, live counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.contracts import History, LiveSignals, Mask, Positions, Progress, Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset, latest_per_pair
from models.data.splits import Split, split_by_time
from models.evaluation.leaderboard import Leaderboard, Row
from models.evaluation.metrics import (
    Lists,
    bootstrap,
    coverage_at,
    hits,
    ndcg_at,
    novelty_at,
    recall_at,
    reciprocal_rank_at,
)
from models.live.stream import live_state_of
from models.retrieval.popularity import Popularity, by_kind
from models.retrieval.popularity_kinds import Kind
from models.training import FittedRelease, fit_recipes
from models.two_stage import Blend

LENGTH = 20
"""Items asked for: Recall@20 looks furthest."""
BASELINES = (
    Kind("all"),
    *(Kind("window", days) for days in (1, 3, 7, 14)),
    *(Kind("decay", days) for days in (0.5, 1, 2, 4, 8)),
)
ROUTED = "blend"
"""Who answers users with interactions, few or many (`app/serving/routing.py`)."""
FIRST = "live_counts"
"""Who answers users without."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test user: what they had done by the moment, and the items that they met for the first time after it."""

    history: History
    relevant: Positions


@dataclass(frozen=True)
class Judge:
    """The test users of a split, and how lists for them are judged.

    cases: one per user with something relevant; empty histories are the cold users
    live:  what people did until the moment
    """

    split: Split
    cases: list[Case]
    seed: int
    live: LiveSignals

    @classmethod
    def of(cls, split: Split, *, seed: int = 0) -> Judge:
        return cls(split, _cases(split), seed, live_state_of(split.earlier))

    @property
    def at(self) -> float:
        """Unix seconds of the moment."""
        return self.split.earlier.ends_at

    @property
    def warm(self) -> Mask:
        """bool[cases]"""
        return np.array([len(case.history) > 0 for case in self.cases], np.bool_)

    def query(self, case: Case) -> Query:
        history = case.history
        return Query(limit=LENGTH, at=self.at, history=history, excluded=history.positions, live=self.live)

    def rows(self, name: str, lists: Lists) -> list[Row]:
        """The lists' rows: all users, warm and cold."""
        groups = {"all": np.ones(len(self.cases), np.bool_), "warm": self.warm, "cold": ~self.warm}
        return [self._row(name, group, lists, which) for group, which in groups.items() if which.any()]

    def _row(self, name: str, group: str, lists: Lists, which: Mask) -> Row:
        chosen = lists[which]
        relevant = [case.relevant for case, is_in in zip(self.cases, which, strict=True) if is_in]
        n_relevant = np.array([len(items) for items in relevant])
        hit = hits(chosen, relevant)
        past = self.split.earlier
        counts = np.bincount(past.interactions.items, minlength=past.n_items)
        return Row(
            recommender=name,
            users=group,
            n_users=len(chosen),
            ndcg=bootstrap(ndcg_at(10, hit, n_relevant), seed=self.seed),
            recall=bootstrap(recall_at(20, hit, n_relevant), seed=self.seed),
            mrr=bootstrap(reciprocal_rank_at(10, hit), seed=self.seed),
            coverage=coverage_at(10, chosen, past.n_items),
            novelty=novelty_at(10, chosen, counts),
        )


def evaluate(
    dataset: Dataset, *, names: list[str] | None = None, seed: int = 0, progress: Progress = unwatched
) -> Leaderboard:
    """Split by time, fit the named recipes (None: all) on what came before, and judge them on what came after."""
    split = split_by_time(dataset)
    fitted = fit_recipes(split.earlier, names=names, seed=seed, progress=lambda what, done: progress(what, 0.8 * done))
    return judge_release(fitted, split, seed=seed, progress=lambda what, done: progress(what, 0.8 + 0.2 * done))


def judge_release(fitted: FittedRelease, split: Split, *, seed: int = 0, progress: Progress = unwatched) -> Leaderboard:
    """The leaderboard of recommenders that were fitted on the split's earlier part."""
    judge = Judge.of(split, seed=seed)
    recommenders = _with_popularity(fitted.recommenders, split)
    newcomer = Query(limit=0, at=judge.at, live=judge.live)
    everyone = _same_for_all(judge, recommenders[FIRST if FIRST in recommenders else "popularity"].scores(newcomer))
    entries: dict[str, Callable[[], Lists]] = {
        f"popularity {kind.label}": lambda kind=kind: _same_for_all(judge, by_kind(split.earlier, (kind,))[0])  # type: ignore[misc]
        for kind in BASELINES
    }
    for name, recommender in recommenders.items():
        entries[name] = lambda recommender=recommender: _filled(_personal(judge, recommender), everyone)  # type: ignore[misc]
    rows: list[Row] = []
    with threadpool_limits(1, "blas"):  # one query is too small to be shared out
        for step, (name, lists) in enumerate(entries.items()):
            progress(f"evaluating {name}", step / len(entries))
            rows += judge.rows(name, found := lists())
            if name == ROUTED:
                rows += judge.rows("routed", found)
    progress("evaluated", 1.0)
    blend = recommenders.get(Blend.name)
    return Leaderboard(
        tuple(rows),
        at=judge.at,
        until=float(split.later.timestamps[-1]),
        n_train=len(split.earlier.interactions),
        blend=blend.chosen if isinstance(blend, Blend) else {},
    )


def _with_popularity(recommenders: Mapping[str, Recommender], split: Split) -> dict[str, Recommender]:
    """Popularity fills what the others leave open, also where it was not asked for by name."""
    if "popularity" in recommenders:
        return dict(recommenders)
    kind = Kind("all")
    return {"popularity": Popularity(by_kind(split.earlier, (kind,)), (kind.label,), kind.label), **recommenders}


def _cases(split: Split) -> list[Case]:
    histories = split.earlier.histories()
    later = split.later.take(latest_per_pair(split.later))
    later = later.take(np.argsort(later.users, kind="stable"))
    users, first = np.unique(later.users, return_index=True)
    cases = []
    for user, items in zip(users, np.split(later.items, first[1:]), strict=len(users) > 0):
        relevant = np.setdiff1d(items, histories[user].positions).astype(np.int32)
        if len(relevant):
            cases.append(Case(histories[user], relevant))
    return cases


def _same_for_all(judge: Judge, scores: Scores) -> Lists:
    """The list that the scores order, each user's seen items left out."""
    longest = LENGTH + max((len(case.history) for case in judge.cases), default=0)
    ranking = np.argsort(-scores, kind="stable")[:longest].astype(np.int32)
    lists = np.full((len(judge.cases), LENGTH), -1, np.int32)
    lists[:] = _padded(ranking[:LENGTH])
    for row in np.flatnonzero(judge.warm):
        unseen = ranking[~np.isin(ranking, judge.cases[row].history.positions)]
        lists[row] = _padded(unseen[:LENGTH])
    return lists


def _personal(judge: Judge, recommender: Recommender) -> Lists:
    """Each warm user's list; empty for cold ones, whom nobody can know."""
    lists = np.full((len(judge.cases), LENGTH), -1, np.int32)
    for row in np.flatnonzero(judge.warm):
        lists[row] = _padded(recommender.recommend(judge.query(judge.cases[row])).positions)
    return lists


def _padded(positions: NDArray[np.int32]) -> NDArray[np.int32]:
    row = np.full(LENGTH, -1, np.int32)
    row[: len(positions)] = positions
    return row


def _filled(lists: Lists, fallback: Lists) -> Lists:
    """Lists with what the fallback has beside them in their empty places."""
    filled = lists.copy()
    for row in np.flatnonzero((lists < 0).any(axis=1)):
        own = lists[row][lists[row] >= 0]
        rest = fallback[row][~np.isin(fallback[row], own)]
        filled[row] = _padded(np.concatenate([own, rest[rest >= 0]])[:LENGTH])
    return filled
