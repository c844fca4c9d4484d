"""HR and MRR over prefixes, against counting by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from models.contracts import NextCandidates, Parts, SessionQuery
from models.evaluation.next_item import as_markdown, judge
from tests.next_track_toys import sessions_of


@dataclass
class Fixed:
    """Answers with the same tracks, whatever was heard, but for those excluded."""

    tracks: tuple[int, ...]
    name: str = "fixed"
    n_items: int = 40

    def next(self, query: SessionQuery) -> NextCandidates:
        left = [track for track in self.tracks if track not in query.excluded.tolist()][: query.limit]
        scores = -np.arange(len(left), dtype=np.float32)
        return NextCandidates(np.array(left, np.int32), scores, np.ones(len(left), np.float32))

    def parts(self) -> Parts:
        return Parts({}, {})


def test_places_are_counted_over_all_prefixes() -> None:
    row = judge(Fixed((2, 3, 9)), sessions_of([1, 2, 3], [5, 6]).prefixes())
    assert row.n == 3
    assert row.hit_rate.mean == pytest.approx(2 / 3)
    assert row.reciprocal_rank.mean == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_behind_the_twentieth_place_is_no_hit() -> None:
    prefixes = sessions_of([1, 2]).prefixes()
    assert judge(Fixed((*range(20, 39), 2)), prefixes).reciprocal_rank.mean == pytest.approx(1 / 20)
    assert judge(Fixed((*range(20, 40), 2)), prefixes).hit_rate.mean == 0


def test_repeats_count_only_where_they_are_allowed() -> None:
    prefixes = sessions_of([1, 1]).prefixes()
    assert judge(Fixed((1,)), prefixes).hit_rate.mean == 1
    assert judge(Fixed((1,)), prefixes, repeats=False).hit_rate.mean == 0


def test_the_table_marks_what_is_served_and_puts_the_best_first() -> None:
    prefixes = sessions_of([1, 2]).prefixes()
    table = as_markdown([judge(Fixed((9,), "wrong"), prefixes), judge(Fixed((2,), "right"), prefixes)], served="right")
    lines = table.splitlines()
    assert lines[2].startswith("| **right** (served) | 1 | 1.0000")
    assert lines[3].startswith("| wrong | 1 | 0.0000")
