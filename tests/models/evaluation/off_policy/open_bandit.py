"""The small Open Bandit data set (ZOZO; Saito and others 2020): what two policies showed of 34 items at three places.

Rows are single decisions with their propensity: `random` shows every item as often, `bts` (Thompson sampling) rather
what is clicked.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[5] / "shared/data/bandit/open-bandit-small"
ITEMS, PLACES = 34, 3


@dataclass(frozen=True)
class Decisions:
    """[n] each; place from 0. There are no user ids: every decision stands for itself."""

    item: np.ndarray
    place: np.ndarray
    click: np.ndarray
    propensity: np.ndarray

    def shares(self) -> np.ndarray:
        """float64[places, items]: how often each item was shown at each place."""
        counts = np.zeros((PLACES, ITEMS))
        np.add.at(counts, (self.place, self.item), 1)
        return counts / counts.sum(axis=1, keepdims=True)


def read(policy: str) -> Decisions:
    with gzip.open(FOLDER / f"{policy}_men.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Decisions(
        np.array([int(row["item_id"]) for row in rows]),
        np.array([int(row["position"]) - 1 for row in rows]),
        np.array([float(row["click"]) for row in rows]),
        np.array([float(row["propensity_score"]) for row in rows]),
    )
