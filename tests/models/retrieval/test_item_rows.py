"""Rows of fitted and of added items, read as one matrix."""

from __future__ import annotations

import numpy as np
import pytest

from models.retrieval.item_rows import ItemRows, cosines

FITTED = np.array([[1, 0], [0, 2], [0, 0]], np.float32)
ADDED = np.array([[3, 3], [0, 0]], np.float32)


@pytest.mark.parametrize("rows", [ItemRows.of(np.vstack([FITTED, ADDED])), ItemRows.of(FITTED).with_added(ADDED)])
def test_read_as_one_matrix(rows: ItemRows) -> None:
    assert len(rows) == 5
    assert rows.take(np.array([3, 0, 1])).tolist() == [[3, 3], [1, 0], [0, 2]]
    assert rows.dot(np.array([1, 2], np.float32)).tolist() == [1, 4, 0, 9, 0]
    assert rows.lengths().tolist() == pytest.approx([1, 2, 0, 18**0.5, 0])
    assert cosines(rows, 1).tolist() == pytest.approx([0, -np.inf, -np.inf, 0.5**0.5, -np.inf])


@pytest.mark.parametrize("position", [-1, 2, 3])
def test_nothing_is_like_an_unknown_item(position: int) -> None:
    assert np.isneginf(cosines(ItemRows.of(FITTED), position)).all()


def test_added_rows_replace_earlier_ones_and_leave_the_fitted_alone() -> None:
    rows = ItemRows.of(FITTED).with_added(ADDED)
    again = rows.with_added(ADDED[:1])
    assert (len(rows), len(again)) == (5, 4)
    assert again.fitted is FITTED
