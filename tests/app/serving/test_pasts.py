"""What is kept of users' pasts goes with the release that it is about, and with what it was made of."""

from __future__ import annotations

import gc
from weakref import ref

import numpy as np

from app.feedback.user_view import UserView
from app.serving.model_host import ServedRelease
from app.serving.retrieve import history_of
from models.artifacts import RowMap


def a_view() -> UserView:
    return UserView(
        user_row=1,
        rows=np.array([12, 99, 10], np.int32),
        weights=np.array([1.0, 2.0, 3.0], np.float32),
        signs=np.array([1, 1, -1], np.int8),
        timestamps=np.array([10.0, 20.0, 30.0]),
        seen=np.array([99, 11, 12, 10], np.int32),
        interactions=4,
        positives=2,
        preferred_categories=(),
    )


def a_release() -> ServedRelease:
    return ServedRelease("r", {}, RowMap.of(np.array([10, 11, 12])))


def test_a_past_is_told_by_the_positions_of_the_release() -> None:
    past = a_release().past_of(a_view())
    assert past.history.positions.tolist() == [2, 0]
    assert past.history.weights.tolist() == [1.0, 3.0]
    assert past.seen.tolist() == [1, 2, 0]


def test_it_is_the_very_same_for_the_same_view_and_another_for_another() -> None:
    release, view = a_release(), a_view()
    assert history_of(view, release) is history_of(view, release)
    assert history_of(a_view(), release) is not history_of(view, release)
    assert history_of(view, a_release()) is not history_of(view, release)


def test_a_release_that_is_served_no_more_is_not_kept_for_a_past() -> None:
    release, view = a_release(), a_view()
    history_of(view, release)
    positions = ref(release.rows.position_of_row)
    del release
    gc.collect()
    assert positions() is None
    assert view.user_row == 1, "the view is still there"


def test_a_past_goes_with_its_view() -> None:
    release, view = a_release(), a_view()
    positions = ref(history_of(view, release).positions)
    assert positions() is not None
    del view
    gc.collect()
    assert positions() is None
