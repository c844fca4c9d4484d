"""The leaderboard: rows to compare recommenders by, for people and for machines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from models.evaluation.metrics import Estimate

COLUMNS = ("recommender", "users", "n", "NDCG@10", "Recall@20", "MRR@10", "coverage@10", "novelty@10")


@dataclass(frozen=True, slots=True)
class Row:
    """How one recommender did for one group of users.

    users:    `all`, `warm` (known to the training data) or `cold`
    coverage: share of the catalogue shown, 0–1; novelty: bits
    """

    recommender: str
    users: str
    n_users: int
    ndcg: Estimate
    recall: Estimate
    mrr: Estimate
    coverage: float
    novelty: float

    def cells(self) -> tuple[str, ...]:
        """One text per column of COLUMNS."""
        accuracy = (_with_interval(estimate) for estimate in (self.ndcg, self.recall, self.mrr))
        return (
            self.recommender, self.users, f"{self.n_users:,}", *accuracy,
            f"{self.coverage:.1%}", f"{self.novelty:.1f}",
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return {
            "recommender": self.recommender,
            "users": self.users,
            "n_users": self.n_users,
            "ndcg_at_10": _json(self.ndcg),
            "recall_at_20": _json(self.recall),
            "mrr_at_10": _json(self.mrr),
            "coverage_at_10": self.coverage,
            "novelty_at_10": self.novelty,
        }


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Rows of one split.

    at:      unix seconds of the moment that the split was made at; until: of the last interaction judged by
    n_train: interactions before it
    blend:   figures of the blend's fit (`Blend.chosen`), all from before the moment; empty without one
    """

    rows: tuple[Row, ...]
    at: float
    until: float
    n_train: int
    blend: Mapping[str, Any] = field(default_factory=dict)

    def row(self, recommender: str, users: str = "all") -> Row:
        """The row of a recommender and a group of users."""
        for row in self.rows:
            if (row.recommender, row.users) == (recommender, users):
                return row
        raise KeyError(f"no row for {recommender!r} and {users!r} users")

    def ranked(self, users: str = "all") -> list[Row]:
        """One group's rows, highest NDCG@10 first."""
        return sorted((row for row in self.rows if row.users == users), key=lambda row: -row.ndcg.mean)

    def title(self) -> str:
        """What was learned from and judged by, in one line."""
        at, until = (datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d") for time in (self.at, self.until))
        return f"{self.n_train:,} interactions up to {at}, judged on what followed until {until}"

    def as_markdown(self) -> str:
        """A table per group of users, best first, 95 % intervals in brackets."""
        parts = [self.title(), *(_table(self.ranked(users)) for users in self._groups())]
        if self.blend.get("weights"):
            parts.append(_blend_as_markdown(self.blend))
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        return {
            "at": self.at,
            "until": self.until,
            "n_train": self.n_train,
            "rows": [row.as_json() for row in self.rows],
            "blend": dict(self.blend),
        }

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(row.users for row in self.rows))


def spread_as_markdown(boards: Sequence[Leaderboard]) -> str:
    """NDCG@10 over leaderboards that differ only in their seed: mean, lowest and highest, best first."""
    first = boards[0]
    lines: list[tuple[str, ...]] = [("recommender", "users", f"NDCG@10 over {len(boards)} seeds", "lowest", "highest")]
    lines.append(("---",) * 5)
    for row in (row for users in first._groups() for row in first.ranked(users)):
        found = [board.row(row.recommender, row.users).ndcg.mean for board in boards]
        figures = (sum(found) / len(found), min(found), max(found))
        lines.append((row.recommender, row.users, *(f"{figure:.4f}" for figure in figures)))
    return _rows(lines) + "\n"


def _blend_as_markdown(blend: Mapping[str, Any]) -> str:
    """What each feature of the blend weighs, and how many right answers it has among its best."""
    depths = list(blend["recall"])
    head = ("feature of the blend", "weight", *(f"recall{depth}" for depth in depths))
    lines = [head, ("---",) * len(head)]
    for name, weight in blend["weights"].items():
        lines.append((name, f"{weight:+.2f}", *(f"{blend['recall'][depth][name]:.1%}" for depth in depths)))
    lines.append(("any of them", "", *(f"{blend['recall'][depth]['any']:.1%}" for depth in depths)))
    said = (
        f"On the newest {blend['held_out']:,} choices of the training data, which the blend did not learn from "
        f"({blend['choices']:,} others taught it), its NDCG@10 is {blend['ndcg']:.4f}, that of live counts "
        f"{blend['live_counts_ndcg']:.4f}. A weight is by how much one deviation of the feature moves the score."
    )
    return f"{said}\n\n{_rows(lines)}"


def _table(rows: list[Row]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row.cells() for row in rows)]
    return _rows(lines)


def _rows(lines: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _json(estimate: Estimate) -> dict[str, float | None]:
    """Not-a-number isn't JSON."""
    return {name: None if math.isnan(value) else value for name, value in estimate._asdict().items()}
