"""Chains of recommenders that answer, have no opinion, or fail."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from app.serving.model_host import ServedRelease
from app.serving.retrieve import retrieve, with_reasons
from models.artifacts import RowMap
from models.contracts import Parts, Positions, Query, Reason, Scores
from models.retrieval.dense import DenseRecommender

ROWS = np.array([10, 11, 12, 13, 14], np.int32)


@dataclass(frozen=True)
class Fixed(DenseRecommender):
    """Scores that were given; NaN means that it breaks."""

    name: ClassVar[str] = "fixed"
    given: tuple[float, ...]

    @property
    def n_items(self) -> int:
        return len(self.given)

    def scores(self, query: Query) -> Scores:
        if np.isnan(self.given).any():
            raise ZeroDivisionError("broken on purpose")
        return np.array(self.given, np.float32)

    def reasons(self, query: Query, positions: Positions) -> list[Reason]:
        return [Reason("similar_to_liked", 4) for _ in positions]

    def with_new_items(self, content: Scores) -> "Fixed":
        return self

    def parts(self) -> Parts:
        return Parts({}, {})


NOTHING = float("-inf")
SILENT = Fixed((NOTHING,) * 5)
BROKEN = Fixed((float("nan"),) * 5)
TWO = Fixed((NOTHING, 9.0, NOTHING, 8.0, NOTHING))
ALL = Fixed((1.0, 5.0, 4.0, 3.0, 2.0))


def release(**recommenders: Fixed) -> ServedRelease:
    return ServedRelease("r", recommenders, RowMap.of(ROWS))


def test_the_first_with_an_answer_leads_and_the_rest_fills_up_without_repeating() -> None:
    found = retrieve(release(silent=SILENT, two=TWO, all=ALL), ("silent", "two", "all"), Query(limit=5, at=0.0))
    assert found.leader == "two"
    assert [item.row for item in found.candidates] == [11, 13, 12, 14, 10]
    assert [item.source for item in found.candidates] == ["two", "two", "all", "all", "all"]
    assert found.missing == ()


def test_what_fills_up_is_scored_below_what_it_follows() -> None:
    found = retrieve(release(two=TWO, all=ALL), ("two", "all"), Query(limit=5, at=0.0))
    scores = [item.score for item in found.candidates]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 5


@pytest.mark.parametrize("chain", [("broken", "all"), ("absent", "all")])
def test_one_that_fails_or_is_not_there_is_passed_over_and_named(chain: tuple[str, ...]) -> None:
    found = retrieve(release(broken=BROKEN, all=ALL), chain, Query(limit=2, at=0.0))
    assert found.missing == (chain[0],)
    assert (found.leader, [item.row for item in found.candidates]) == ("all", [11, 12])


def test_nothing_is_asked_beyond_a_full_list() -> None:
    found = retrieve(release(all=ALL, broken=BROKEN), ("all", "broken"), Query(limit=5, at=0.0))
    assert found.missing == ()


def test_only_the_leaders_items_get_reasons_and_seeds_are_rows() -> None:
    served = release(two=TWO, all=ALL)
    found = retrieve(served, ("two", "all"), Query(limit=3, at=0.0))
    explained = with_reasons(served, found.candidates, Query(limit=3, at=0.0), found.leader)
    assert [item.reason for item in explained] == [
        Reason("similar_to_liked", 14), Reason("similar_to_liked", 14), Reason("fallback"),
    ]  # fmt: skip
