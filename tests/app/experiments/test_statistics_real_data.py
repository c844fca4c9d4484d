"""CUPED on real users: it takes out of the variance what their past predicts, on users it has not seen too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from app.experiments.statistics import Outcomes, compare
from benchmarks.experiments_cuped import DESKDROP, Repeated, deskdrop, movietweetings, reduction

SPLITS = 300


@pytest.fixture(scope="module", params=["movietweetings", "deskdrop"])
def users(request: pytest.FixtureRequest) -> Repeated:
    if request.param == "movietweetings":
        return movietweetings()
    found = deskdrop()
    if found is None:
        pytest.skip(f"Deskdrop is not at hand: {DESKDROP}")
    return found


def test_the_reduction_is_the_squared_correlation(users: Repeated) -> None:
    has_past = ~np.isnan(users.before)
    after, before = users.after[has_past], users.before[has_past]
    half = np.random.default_rng(1).random(len(after)) < 0.5
    found = compare(*(Outcomes(after[arm], before_numerator=before[arm]) for arm in (half, ~half)))
    squared = np.corrcoef(after, before)[0, 1] ** 2
    assert squared > 0.1
    assert found.variance_reduction == pytest.approx(squared, abs=0.01)


def test_what_one_half_of_the_users_predicts_comes_true_on_the_other_and_over_experiments(users: Repeated) -> None:
    found = reduction(users, splits=SPLITS, seed=1)
    assert found.predicted > 0.2
    assert found.out_of_sample == pytest.approx(found.predicted, abs=0.02)
    assert found.reported == pytest.approx(found.predicted, abs=0.01)
    # Both variances are of the same splits, so their ratio errs by 2·rho / sqrt(splits) of itself; three of these.
    error = (1.0 - found.predicted) * 2.0 * math.sqrt(found.predicted / SPLITS)
    assert found.over_splits == pytest.approx(found.predicted, abs=3.0 * error)
