"""Intervals that hold at every look: their formula against the integral it comes from, and whom they count."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from app.experiments.statistics import Outcomes, compare, sequential


@pytest.mark.parametrize("users", [100, 3_000, 80_000])
@pytest.mark.parametrize("z", [0.5, 2.0, 4.5])
def test_the_p_value_is_one_over_the_likelihood_ratio_of_a_normal_mixture(z: float, users: int) -> None:
    """Effects in standard deviations, drawn from a normal distribution around none, against none."""
    planned = 3_000
    variance = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05)) + 1) / planned
    total = z * math.sqrt(users)  # of the standardised outcomes

    def ratio(effect: float) -> float:
        return math.exp(effect * total - users * effect**2 / 2) * stats.norm.pdf(effect, scale=math.sqrt(variance))

    mixture, _ = quad(ratio, -10 / math.sqrt(users) - 1, 10 / math.sqrt(users) + 1, points=[z / math.sqrt(users)])
    found = sequential.p_value(z, users, alpha=0.05, planned_users=planned)
    assert found == pytest.approx(min(1.0, 1.0 / mixture), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_p_value_and_critical_value_agree(alpha: float) -> None:
    for users in (10, 1_000, 10**6):
        critical = sequential.critical_value(users, alpha=alpha, planned_users=5_000)
        assert sequential.p_value(critical, users, alpha=alpha, planned_users=5_000) == pytest.approx(alpha)


def test_the_interval_is_tightest_about_where_it_was_planned() -> None:
    def width(planned: float) -> float:
        return sequential.critical_value(5_000, alpha=0.05, planned_users=planned)

    assert width(5_000) < min(width(2_500), width(10_000))
    assert width(5_000) < 1.05 * min(width(planned) for planned in np.geomspace(500, 50_000, 200))


def test_random_walks_watched_after_every_user_leave_it_as_seldom_as_they_may() -> None:
    walks = np.random.default_rng(8).normal(size=(2_000, 3_000)).cumsum(axis=1)
    users = np.arange(1, 3_001)
    allowed = np.array([sequential.critical_value(n, alpha=0.05, planned_users=1_000) for n in users])
    left = (np.abs(walks) > allowed * np.sqrt(users)).any(axis=1).sum()
    assert 0 < left <= stats.binom.ppf(0.995, 2_000, 0.05)


def test_users_whose_window_is_open_say_nothing_always_valid() -> None:
    rng = np.random.default_rng(9)
    numbers = [rng.gamma(2.0, size=300) for _ in range(2)]
    closed = rng.random(300) < 0.6
    mixed = compare(*(Outcomes(one, is_complete=closed) for one in numbers))
    alone = compare(*(Outcomes(one[closed], is_complete=np.ones(closed.sum(), dtype=bool)) for one in numbers))
    assert mixed.sequential_users == 2 * closed.sum() == alone.users_control + alone.users_variant
    for name in ("difference", "interval", "relative_interval", "p_value"):
        assert getattr(mixed, f"sequential_{name}") == pytest.approx(getattr(alone, f"sequential_{name}"))
    assert mixed.sequential_difference != mixed.difference


def test_it_is_wider_than_the_interval_for_one_look_and_finds_what_is_large() -> None:
    rng = np.random.default_rng(10)
    control, variant = rng.poisson(2.0, 2_000), rng.poisson(2.6, 2_000)
    is_complete = np.ones(2_000, dtype=bool)
    found = compare(Outcomes(control, is_complete=is_complete), Outcomes(variant, is_complete=is_complete))
    (low, high), (always_low, always_high) = found.interval, found.sequential_interval
    assert 0.0 < always_low < low < high < always_high
    assert found.sequential_p_value < 0.001
    assert found.sequential_relative_interval[0] > 0.0


def test_without_knowing_whose_window_has_closed_or_with_few_of_them_nothing_is_said() -> None:
    numbers = np.random.default_rng(11).gamma(2.0, size=200)
    few = np.arange(200) < sequential.MINIMUM_USERS - 1
    for unknown in (Outcomes(numbers), Outcomes(numbers, is_complete=few)):
        found = compare(replace(unknown), Outcomes(numbers, is_complete=~few))
        assert (found.sequential_interval, found.sequential_p_value, found.sequential_difference) == (None, None, None)
        assert found.sequential_users == 0
