"""Comparisons of two variants, against other people's code and where the data end."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from app.experiments.statistics import NoComparison, Outcomes, compare


def test_means_are_compared_as_welch_does(rng: np.random.Generator) -> None:
    control, variant = rng.gamma(2.0, size=300), rng.gamma(2.2, size=200)
    judge = stats.ttest_ind(variant, control, equal_var=False)
    found = compare(Outcomes(control), Outcomes(variant))
    assert found.p_value == pytest.approx(judge.pvalue)
    assert found.interval == pytest.approx(judge.confidence_interval(0.95))


@pytest.mark.parametrize(("control", "variant"), [([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([1.0, 2.0], [])])
def test_fewer_than_two_users_are_no_comparison(control: list[float], variant: list[float]) -> None:
    with pytest.raises(NoComparison, match="needs 2 in each"):
        compare(Outcomes(np.array(control)), Outcomes(np.array(variant)))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)
