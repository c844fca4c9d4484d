"""How well the next item is foretold: HR and MRR over beginnings of sessions, against all items.

The protocol of the literature on sessions (GRU4Rec, SR-GNN, GCE-GNN): every beginning of every test session is one
question, its answer the item that follows, wherever it stands among all items; items heard before stay in. With
`Sessions.last_prefixes` the same measures are leave-last-out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from models.contracts import NextTrackRecommender, SessionQuery
from models.data.sessions import Prefixes
from models.evaluation.metrics import Estimate, bootstrap

CUT = 20


@dataclass(frozen=True, slots=True)
class NextItemRow:
    """How one recommender did.

    hit_rate:        the share of questions whose answer is among the first 20
    reciprocal_rank: the mean of 1 / its place, 0 behind the 20th
    milliseconds:    CPU time of one question, the whole process's
    """

    recommender: str
    n: int
    hit_rate: Estimate
    reciprocal_rank: Estimate
    milliseconds: float

    def cells(self) -> tuple[str, ...]:
        """One text per column of COLUMNS."""
        accuracy = (f"{e.mean:.4f} [{e.low:.4f}, {e.high:.4f}]" for e in (self.hit_rate, self.reciprocal_rank))
        return (self.recommender, f"{self.n:,}", *accuracy, f"{self.milliseconds:.2f}")


COLUMNS = ("recipe", "prefixes", "HR@20", "MRR@20", "CPU ms")


def judge(recommender: NextTrackRecommender, prefixes: Prefixes, *, repeats: bool = True, seed: int = 0) -> NextItemRow:
    """Ask for 20 after every prefix; intervals by the bootstrap over prefixes.

    repeats: whether what was heard in the prefix may come again; False excludes it
    """
    places = np.zeros(len(prefixes), np.int64)
    nothing = np.empty(0, np.int32)
    started = time.process_time()
    for index, prefix in enumerate(prefixes):
        excluded = nothing if repeats else prefix.tracks
        query = SessionQuery(prefix.tracks, prefix.fractions, at=0.0, limit=CUT, excluded=excluded)
        found = np.flatnonzero(recommender.next(query).positions == prefix.target)
        places[index] = found[0] + 1 if len(found) else 0
    spent = time.process_time() - started
    gained = np.divide(1.0, places, out=np.zeros(len(places)), where=places > 0)
    return NextItemRow(
        recommender.name,
        len(prefixes),
        bootstrap((places > 0).astype(np.float64), seed=seed, draws=200),
        bootstrap(gained, seed=seed, draws=200),
        spent / max(len(prefixes), 1) * 1000,
    )


def as_markdown(rows: list[NextItemRow], served: str | None = None) -> str:
    """A table, best HR@20 first; the served recipe is set in bold."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in sorted(rows, key=lambda row: -row.hit_rate.mean):
        cells = row.cells()
        lines.append((f"**{cells[0]}** (served)", *cells[1:]) if row.recommender == served else cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
