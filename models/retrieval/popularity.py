"""Popularity: what people did lately, in several windows and decays at once; the end of every fallback chain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from models.contracts import Arrays, Parameters, Parts, Positions, Progress, Query, Reason, Scores
from models.data.dataset import Dataset
from models.retrieval.dense import DenseRecommender
from models.retrieval.popularity_kinds import KINDS, Kind, choose_kind, masses

_TIE_BREAK = 1e-6
"""What all-time popularity adds, at most: less than the interaction of a month ago in most decays."""


@dataclass(frozen=True)
class Popularity(DenseRecommender):
    """Built by `fit_popularity` or `from_parts`. Every item has a finite score, also those never met.

    by_kind: float32[k, n], one row per label: summed weights of the item's interactions
    served:  the label that `scores` answers by
    n_new:   items that arrived since; they come last
    """

    name: ClassVar[str] = "popularity"
    by_kind: Scores
    labels: tuple[str, ...]
    served: str
    n_new: int = 0

    @property
    def n_items(self) -> int:
        return int(self.by_kind.shape[1]) + self.n_new

    def scores(self, query: Query) -> Scores:  # noqa: ARG002 - the same for everyone
        return self.of(self.served)

    def of(self, label: str) -> Scores:
        """float32[n_items], the scores of one kind, ties broken by all-time popularity."""
        fitted = self.by_kind[self.labels.index(label)]
        return np.concatenate([fitted, np.zeros(self.n_new, np.float32)])

    def serving(self, label: str) -> Self:
        """A copy that answers by another kind, one of `labels`."""
        if label not in self.labels:
            raise ValueError(f"popularity kind {label!r} is unknown; there are {', '.join(self.labels)}")
        return replace(self, served=label)

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:  # noqa: ARG002 - always the same
        return [Reason("popular")] * len(positions)

    def with_new_items(self, content: Scores) -> Self:
        return replace(self, n_new=len(content))

    def parts(self) -> Parts:
        return Parts({"labels": list(self.labels), "served": self.served}, {"by_kind": self.by_kind})

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        return cls(arrays["by_kind"], tuple(parameters["labels"]), parameters["served"])


def fit_popularity(dataset: Dataset, *, progress: Progress) -> Popularity:
    """Count in every kind; serve the one that foretold best inside the dataset."""
    progress("popularity: choosing a window or decay", 0.0)
    served = choose_kind(dataset)
    fitted = Popularity(by_kind(dataset, KINDS), tuple(kind.label for kind in KINDS), served.label)
    progress("popularity: done", 1.0)
    return fitted


def refit_popularity(like: Popularity, dataset: Dataset) -> Popularity:
    """Count other data; serve the kind of one fitted before."""
    return replace(like, by_kind=by_kind(dataset, KINDS), n_new=0)


def by_kind(dataset: Dataset, kinds: tuple[Kind, ...]) -> Scores:
    """float32[k, n_items]"""
    total = masses(dataset, Kind("all"))
    tie_break = _TIE_BREAK * total / max(total.max(initial=0.0), 1.0)
    return np.stack([masses(dataset, kind) + tie_break for kind in kinds]).astype(np.float32)
