"""Sample ratio, many metrics, power: judged by scipy, statsmodels and by counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from app.experiments.statistics import (
    NoComparison,
    Outcomes,
    Waiting,
    adjusted,
    compare,
    days_left,
    minimum_detectable_effect,
    sample_ratio,
    sample_ratio_by,
    users_needed,
)


def test_a_sample_ratio_is_a_chi_square_test() -> None:
    found = sample_ratio([5_000, 5_210, 9_790], [0.25, 0.25, 0.5])
    assert found.p_value == pytest.approx(stats.chisquare([5_000, 5_210, 9_790], [5_000, 5_000, 10_000]).pvalue)
    assert not found.is_mismatch


def test_variants_that_lose_users_are_found_out() -> None:
    assert sample_ratio([5_000, 4_600], [1, 1]).is_mismatch
    assert not sample_ratio([5_000, 4_800], [1, 1]).is_mismatch


def test_few_users_are_judged_exactly() -> None:
    """Chi-square would put this at 0.00006."""
    found = sample_ratio([95, 5], [0.99, 0.01])
    assert found.p_value == pytest.approx(2 * stats.binom.sf(4, 100, 0.01))
    assert not found.is_mismatch
    assert sample_ratio([90, 10], [0.99, 0.01]).is_mismatch
    assert sample_ratio([12, 0, 0], [0.1, 0.45, 0.45]).is_mismatch


def test_nobody_fits_any_weights_and_somebody_not_a_weight_of_zero() -> None:
    assert sample_ratio([0, 0], [0.5, 0.5]).p_value == 1.0
    assert sample_ratio([10, 0], [1.0, 0.0]).p_value == 1.0
    assert sample_ratio([10, 1], [1.0, 0.0]).is_mismatch
    with pytest.raises(ValueError, match="don't fit"):
        sample_ratio([1, 2, 3], [0.5, 0.5])


def test_one_bad_worker_is_found_among_good_ones() -> None:
    workers = {f"w{number}": [500, 500] for number in range(20)}
    found = sample_ratio_by(workers | {"w7": [500, 360]}, [0.5, 0.5])
    assert found.mismatched == ("w7",)
    assert not sample_ratio([20 * 500, 19 * 500 + 360], [0.5, 0.5]).is_mismatch


def test_days_that_cancel_each_other_are_found() -> None:
    found = sample_ratio_by({"monday": [600, 400], "tuesday": [400, 600]}, [0.5, 0.5])
    assert set(found.mismatched) == {"monday", "tuesday"}


def test_strata_with_few_users_are_judged_together() -> None:
    found = sample_ratio_by({f"route {number}": [15, 5] for number in range(40)}, [0.5, 0.5])
    assert found.mismatched == ("(small)",)


def test_many_sound_strata_are_seldom_suspected() -> None:
    """By as many as one experiment in a thousand, however many workers it ran on."""
    rng = np.random.default_rng(3)
    suspected = 0
    for _ in range(1_000):
        users = rng.integers(5, 400, 12)
        variants = rng.binomial(users, 0.1)
        counts = {
            str(worker): [total - one, one] for worker, (total, one) in enumerate(zip(users, variants, strict=True))
        }
        suspected += bool(sample_ratio_by(counts, [0.9, 0.1]).mismatched)
    assert suspected <= stats.binom.ppf(0.995, 1_000, 0.001)


@pytest.mark.parametrize(("method", "judge"), [("holm", "holm"), ("benjamini_hochberg", "fdr_bh")])
def test_many_metrics_are_adjusted_as_statsmodels_does(method: str, judge: str) -> None:
    p_values = [0.04, 0.001, 0.03, 0.001, 0.9, 1.0, 0.011, 0.0]
    assert adjusted(p_values, method) == pytest.approx(multipletests(p_values, method=judge)[1])
    assert adjusted([], method) == []


def test_a_p_value_is_between_0_and_1() -> None:
    for wrong in (1.2, float("nan")):
        with pytest.raises(ValueError, match="0–1"):
            adjusted([0.5, wrong])


@pytest.fixture
def comparison():
    rng = np.random.default_rng(4)
    return compare(Outcomes(rng.normal(5.0, 2.0, 3_000)), Outcomes(rng.normal(5.0, 2.0, 1_000)))


def test_the_least_effect_is_what_statsmodels_finds_with_that_power(comparison) -> None:
    deviation = comparison.standard_error / np.sqrt(1 / 3_000 + 1 / 1_000)
    judge = NormalIndPower().solve_power(nobs1=1_000, ratio=3.0, alpha=0.01, power=0.9) * deviation
    assert minimum_detectable_effect(comparison, alpha=0.01, power=0.9) == pytest.approx(judge, rel=1e-4)


def test_as_many_users_as_needed_find_the_effect(comparison) -> None:
    least = minimum_detectable_effect(comparison)
    assert users_needed(comparison, least) == pytest.approx(4_000, abs=1)
    assert users_needed(comparison, -least / 2) == pytest.approx(16_000, abs=2)


def test_the_days_left_are_those_until_they_have_come(comparison) -> None:
    least = minimum_detectable_effect(comparison)
    assert days_left(comparison, least / 2, 1_000.0) == pytest.approx(12.0, abs=0.01)
    assert days_left(comparison, 2 * least, 1_000.0) == 0.0
    assert days_left(comparison, least / 2, 0.0) is None


def test_who_waits_is_not_waited_for_twice(comparison) -> None:
    """4,000 are in the figures, and half the least effect takes 16,000."""
    half = minimum_detectable_effect(comparison) / 2
    for users, days in ((12_010, 3.0), (6_000, 6.0 + 7.0), (0, 12.0 + 7.0)):
        assert days_left(comparison, half, 1_000.0, waiting=Waiting(users, 3.0, 7.0)) == pytest.approx(days, abs=0.01)
    assert days_left(comparison, half, 0.0, waiting=Waiting(12_010, 3.0, 7.0)) == 3.0
    assert days_left(comparison, 4 * half, 1_000.0, waiting=Waiting(100, 3.0, 7.0)) == 0.0


def test_more_users_than_there_are_numbers_are_none(comparison) -> None:
    for effect in (1e-160, 1e-300, 5e-324):
        assert users_needed(comparison, effect) is None
        assert days_left(comparison, effect, 1_000.0) is None
    assert days_left(comparison, 1e-150, 1e-20) is None


def test_tiny_values_are_compared_like_any_others() -> None:
    rng = np.random.default_rng(7)
    both = rng.normal(1.0, 1.0, 50), rng.normal(1.5, 1.0, 70)
    plain, tiny = (compare(*(Outcomes(scale * values) for values in both)) for scale in (1.0, 1e-90))

    assert tiny.p_value == pytest.approx(plain.p_value)
    assert tiny.relative_lift == pytest.approx(plain.relative_lift)


def test_nothing_finds_an_effect_of_zero_nor_tells_what_nobody_varies_in(comparison) -> None:
    with pytest.raises(ValueError, match="a difference of 0"):
        users_needed(comparison, 0.0)
    same = compare(Outcomes(np.ones(5)), Outcomes(np.ones(5)))
    with pytest.raises(NoComparison, match="how many are needed"):
        minimum_detectable_effect(same)
