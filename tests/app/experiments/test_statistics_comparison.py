"""Comparisons of two variants, judged by other people's code, and where the data end."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from app.experiments.statistics import Comparison, NoComparison, Outcomes, compare


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261122)


def returning(rng: np.random.Generator, users: int, lift: float = 1.0) -> Outcomes:
    """Clicks and pages of people of different habits; a quarter of them has no past."""
    habit = rng.gamma(2.0, size=users)
    past = np.where(rng.random(users) < 0.25, np.nan, 1.0)
    pages, pages_before = rng.poisson(6 * habit) + 1.0, rng.poisson(6 * habit) + 1.0
    clicks, clicks_before = rng.poisson(0.3 * lift * habit * pages), rng.poisson(0.3 * habit * pages_before)
    return Outcomes(clicks, pages, clicks_before * past, pages_before * past)


def without_denominator(outcomes: Outcomes) -> Outcomes:
    return replace(outcomes, denominator=None, before_denominator=None)


def test_means_are_compared_as_welch_does(rng: np.random.Generator) -> None:
    control, variant = rng.gamma(2.0, size=300), rng.gamma(2.2, size=200)
    judge = stats.ttest_ind(variant, control, equal_var=False)
    found = compare(Outcomes(control), Outcomes(variant))
    assert found.p_value == pytest.approx(judge.pvalue)
    assert found.interval == pytest.approx(judge.confidence_interval(0.95))
    assert (found.users_control, found.users_variant) == (300, 200)


def test_a_ratio_has_the_error_of_a_weighted_fit_that_trusts_no_variance(rng: np.random.Generator) -> None:
    """White's errors of users' ratios weighted by their denominators are the delta method's, but for n - 1."""
    control, variant = returning(rng, 500), returning(rng, 500, lift=1.1)
    pages = np.concatenate([control.denominator, variant.denominator])
    rates = np.concatenate([control.numerator, variant.numerator]) / pages
    is_variant = np.repeat([0.0, 1.0], 500)
    judge = sm.WLS(rates, sm.add_constant(is_variant), weights=pages).fit(cov_type="HC0")
    found = compare(control, variant, cuped=False)
    assert found.difference == pytest.approx(judge.params[1])
    assert found.standard_error == pytest.approx(judge.bse[1] * math.sqrt(500 / 499))
    assert found.mean_control == pytest.approx(control.numerator.sum() / control.denominator.sum())


def test_cuped_is_the_least_squares_fit_on_variant_past_and_its_absence(rng: np.random.Generator) -> None:
    control, variant = (without_denominator(returning(rng, users)) for users in (600, 400))
    before = np.concatenate([control.before_numerator, variant.before_numerator])
    is_missing = np.isnan(before)
    columns = [np.repeat([0.0, 1.0], [600, 400]), np.where(is_missing, 0.0, before), is_missing]
    outcome = np.concatenate([control.numerator, variant.numerator])
    judge = sm.OLS(outcome, sm.add_constant(np.stack(columns, axis=1).astype(float))).fit(cov_type="HC1")
    found = compare(control, variant)
    assert found.difference == pytest.approx(judge.params[1])
    assert found.standard_error == pytest.approx(judge.bse[1], rel=0.01)
    assert (found.users_control, found.users_variant, found.cuped) == (600, 400, True)


def test_cuped_narrows_a_ratio_too_and_leaves_the_observed_means(rng: np.random.Generator) -> None:
    control, variant = returning(rng, 3_000), returning(rng, 3_000)
    with_past, without = compare(control, variant), compare(control, variant, cuped=False)
    assert with_past.mean_control == without.mean_control
    assert with_past.standard_error**2 == pytest.approx(
        without.standard_error**2 * (1.0 - with_past.variance_reduction)
    )
    assert with_past.variance_reduction > 0.1
    assert not without.cuped
    assert without.variance_reduction == 0.0


def test_cuped_takes_out_a_difference_that_was_there_before(rng: np.random.Generator) -> None:
    """Chance gave the variant the keener half; what they do now is what they did before, twice."""
    before = rng.gamma(2.0, 3.0, size=400)
    now = 2.0 * before + rng.normal(size=400)
    keen = before > np.median(before)
    control, variant = (Outcomes(now[users], before_numerator=before[users]) for users in (~keen, keen))
    assert compare(control, variant, cuped=False).p_value < 1e-20
    assert abs(compare(control, variant).difference) < 0.5


def test_the_cut_of_winsorising_is_pooled(rng: np.random.Generator) -> None:
    control, variant = np.ones(500), np.concatenate([np.ones(480), np.full(20, 100.0)])
    assert compare(Outcomes(control), Outcomes(variant), winsor=0.99).mean_variant == pytest.approx(variant.mean())
    assert compare(Outcomes(control), Outcomes(variant), winsor=0.97).mean_variant == 1.0


def test_winsorising_leaves_a_rare_yes_or_no_as_it_is() -> None:
    rare = np.zeros(1_000)
    rare[:3] = 1.0
    assert compare(Outcomes(rare), Outcomes(rare), winsor=0.99).mean_control == pytest.approx(0.003)


def test_fieller_s_interval_holds_the_lifts_that_a_test_would_not_refuse(rng: np.random.Generator) -> None:
    control, variant = rng.gamma(2.0, size=400), rng.gamma(2.3, size=400)
    found = compare(Outcomes(control), Outcomes(variant))
    allowed = (found.interval[1] - found.difference) / found.standard_error
    for lift in found.relative_interval:
        scaled = (1.0 + lift) * control
        gap = variant.mean() - scaled.mean()
        assert abs(gap) / math.sqrt(variant.var(ddof=1) / 400 + scaled.var(ddof=1) / 400) == pytest.approx(allowed)


@pytest.mark.parametrize("cuped", [False, True])
def test_the_relative_interval_covers_the_true_lift_as_often_as_it_says(cuped: bool) -> None:
    covered = 0
    for seed in range(1_000):
        rng = np.random.default_rng([5, seed])
        control, variant = (without_denominator(returning(rng, 150, lift)) for lift in (1.0, 1.3))
        low, high = compare(control, variant, cuped=cuped).relative_interval
        covered += low <= 0.3 <= high
    low, high = stats.binom.ppf([0.005, 0.995], 1_000, 0.95)
    assert low <= covered <= high


def test_the_lift_s_interval_excludes_0_exactly_where_the_difference_s_does() -> None:
    agreed = set()
    for seed in range(300):
        rng = np.random.default_rng([6, seed])
        found = compare(returning(rng, 60), returning(rng, 60, lift=1.3))
        (low, high), (low_lift, high_lift) = found.interval, found.relative_interval
        assert (low > 0.0, high < 0.0) == (low_lift > 0.0, high_lift < 0.0)
        assert (found.p_value < 0.05) == (low > 0.0 or high < 0.0)
        agreed.add(low > 0.0)
    assert agreed == {True, False}


@pytest.mark.parametrize(("control", "variant"), [([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([1.0, 2.0], [])])
def test_fewer_than_two_users_are_no_comparison(control: list[float], variant: list[float]) -> None:
    with pytest.raises(NoComparison, match="needs 2 in each"):
        compare(Outcomes(np.array(control)), Outcomes(np.array(variant)))


def test_a_ratio_without_anything_below_is_no_comparison() -> None:
    empty, full = Outcomes(np.zeros(3), np.zeros(3)), Outcomes(np.ones(3), np.ones(3))
    with pytest.raises(NoComparison, match="denominator of variant sums to 0"):
        compare(full, empty)


def test_a_number_that_is_none_is_named() -> None:
    with pytest.raises(NoComparison, match="numerator of user 1 is nan"):
        Outcomes(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"denominator has shape \(1,\), not \(2,\)"):
        Outcomes(np.ones(2), np.ones(1))


def test_a_mean_is_not_compared_with_a_ratio_nor_at_a_level_that_is_none() -> None:
    mean, ratio = Outcomes(np.arange(3.0)), Outcomes(np.arange(3.0), np.ones(3))
    with pytest.raises(ValueError, match="with a ratio"):
        compare(mean, ratio)
    for level in ({"alpha": 0.0}, {"winsor": 99.0}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            compare(mean, mean, **level)


def test_users_whose_denominator_is_0_count_as_users() -> None:
    control = Outcomes(np.array([1.0, 0.0, 2.0]), np.array([2.0, 0.0, 3.0]))
    found = compare(control, control)
    assert (found.users_control, found.mean_control) == (3, pytest.approx(0.6))


def test_without_variation_there_is_no_p_value() -> None:
    found = compare(Outcomes(np.full(100, 0.1)), Outcomes(np.full(100, 0.3)))
    assert (found.p_value, found.interval, found.relative_interval) == (None, None, None)
    assert found.relative_lift == pytest.approx(2.0)
    assert found.standard_error == 0.0


def test_over_a_control_at_0_there_is_no_lift(rng: np.random.Generator) -> None:
    found = compare(Outcomes(np.zeros(100)), Outcomes(rng.poisson(1.0, 100)))
    assert (found.relative_lift, found.relative_interval) == (None, None)
    assert found.p_value < 0.001


def test_a_lift_over_a_mean_that_may_be_0_has_no_interval(rng: np.random.Generator) -> None:
    found = compare(Outcomes(rng.normal(0.01, 1.0, 100)), Outcomes(rng.normal(0.5, 1.0, 100)))
    assert found.interval is not None
    assert found.relative_interval is None


@pytest.mark.parametrize("past", [np.full(50, np.nan), np.ones(50)])
def test_a_past_that_tells_nobody_apart_changes_nothing(past: np.ndarray, rng: np.random.Generator) -> None:
    control, variant = rng.poisson(2.0, 50), rng.poisson(2.0, 50)
    told = compare(Outcomes(control, before_numerator=past), Outcomes(variant, before_numerator=past))
    untold = compare(Outcomes(control), Outcomes(variant))
    assert (told.difference, told.p_value) == pytest.approx((untold.difference, untold.p_value))
    assert not told.cuped


def test_a_past_told_twice_counts_once(rng: np.random.Generator) -> None:
    control, variant = (without_denominator(returning(rng, 200)) for _ in range(2))
    twice = compare(*(replace(one, before_denominator=3.0 * one.before_numerator) for one in (control, variant)))
    assert astuple(twice)[:6] == pytest.approx(astuple(compare(control, variant))[:6])


numbers = st.lists(st.sampled_from([0.0, 1.0, 1.0, 3.0, 1e-9, 1e9]), min_size=0, max_size=8)
pasts = st.sampled_from([0.0, 1.0, 5.0, math.nan])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_answer_is_ever_nan(data: st.DataObject) -> None:
    arms = []
    for _ in range(2):
        numerator = data.draw(numbers)
        same = {"min_size": len(numerator), "max_size": len(numerator)}
        denominator = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), **same))
        before = data.draw(st.lists(pasts, **same))
        arms.append(Outcomes(numerator, denominator, before, before, np.ones(len(numerator), dtype=bool)))
    if data.draw(st.booleans()):
        arms = [without_denominator(arm) for arm in arms]
    try:
        found = compare(*arms, winsor=data.draw(st.sampled_from([None, 0.5, 0.99])))
    except NoComparison:
        return
    assert_finite(found)


def assert_finite(found: Comparison) -> None:
    for value in astuple(found):
        for number in value if isinstance(value, tuple) else [value]:
            assert number is None or math.isfinite(number), found
