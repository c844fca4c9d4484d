"""Tracks that point to other tracks: the session's latest ones vote, the last one loudest.

Three recipes are served by this one class and differ in where the links come from: transitions counted one way, listens
counted both ways (`transitions`), and a linear autoencoder's weights (`recency_ease`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from models.contracts import Arrays, NextCandidates, Parameters, Parts, Positions, Scores, SessionQuery
from models.retrieval.next_track.answers import Claims, Heard, NextOpinion, answer_of

MOST_LINKS = 300
"""The strongest links that a track keeps."""


@dataclass(frozen=True)
class LinkedTracks:
    """Built by a fit of `transitions` or `recency_ease`, or by `from_parts`.

    bounds:  int64[n + 1]; track i points to others[bounds[i]:bounds[i + 1]], ascending, with these weights
    others:  int32[links]
    weights: float32[links]
    last:    how many of the session's latest tracks vote, each `decay` times as loud as the one after it
    """

    name: str
    bounds: NDArray[np.int64]
    others: Positions
    weights: Scores
    last: int
    decay: float

    @property
    def n_items(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def _fading(self) -> Scores:
        """float32[last]: how loud the session's tracks vote, the latest first."""
        return (self.decay ** np.arange(self.last)).astype(np.float32)

    def claims(self, heard: Heard) -> Claims:
        """Everything that the latest tracks point to."""
        latest = heard.positions[: -self.last - 1 : -1]
        if len(latest) == 0:
            return Claims.none()
        votes = heard.strengths[: -self.last - 1 : -1] * self._fading[: len(latest)]
        starts, ends = self.bounds.take(latest), self.bounds.take(latest + 1)
        slices = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        weights = np.concatenate([self.weights[part] for part in slices])
        weights *= votes.repeat(ends - starts)
        return Claims(np.concatenate([self.others[part] for part in slices]), weights)

    def opinion(self, heard: Heard) -> NextOpinion:
        return NextOpinion.of(self.claims(heard), self.n_items)

    def next(self, query: SessionQuery) -> NextCandidates:
        return answer_of(self, query)

    def parts(self) -> Parts:
        parameters: dict[str, Any] = {"name": self.name, "last": self.last, "decay": self.decay}
        return Parts(parameters, {"bounds": self.bounds, "others": self.others, "weights": self.weights})

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        return cls(
            name=str(parameters["name"]),
            bounds=arrays["bounds"],
            others=arrays["others"],
            weights=arrays["weights"],
            last=int(parameters["last"]),
            decay=float(parameters["decay"]),
        )

    @classmethod
    def of(cls, name: str, links: sparse.csr_array, *, last: int, decay: float, most: int = MOST_LINKS) -> Self:
        """From a matrix of links, row → column, the strongest of each row kept."""
        links = sparse.csr_array(links)
        kept = strongest(links.indptr, links.data, most)
        links = sparse.csr_array(
            (links.data[kept], links.indices[kept], np.searchsorted(kept, links.indptr)), shape=links.shape
        )
        links.sort_indices()
        return cls(
            name, links.indptr.astype(np.int64), links.indices.astype(np.int32), links.data.astype(np.float32),
            last, decay,
        )  # fmt: skip


def strongest(bounds: NDArray[Any], weights: NDArray[Any], most: int) -> NDArray[np.int64]:
    """int64[k]: indices of the `most` highest weights of each row, in their order."""
    rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    order = np.lexsort((-weights, rows))
    place = np.arange(len(order)) - bounds[rows]
    return np.sort(order[place < most])
