"""Done when 3 of the experiments' issue: intervals that hold the truth as often as they say, on 1,000 logs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from benchmarks.off_policy_coverage import ESTIMATORS, HEADLINE, LOGGING, TARGETS, WRONG, alarms, coverage
from benchmarks.off_policy_logs import drawn_logs
from models.evaluation.off_policy.intervals import difference_of, interval_of, p_value

LOGS, USERS = 1_000, 300

# On one of xdist's workers, so that the logs are drawn and judged once.
pytestmark = pytest.mark.xdist_group("off_policy_coverage")


@pytest.fixture(scope="module")
def covered() -> dict[str, float]:
    """By estimator, where people do the most that it allows."""
    found = coverage(TARGETS[HEADLINE], logs=LOGS, users=USERS)
    return {estimator: row.covered for (estimator, _), row in found.items()}


@pytest.mark.parametrize("estimator", [each.name for each in ESTIMATORS])
def test_of_1000_intervals_93_to_97_percent_hold_the_truth(covered: dict[str, float], estimator: str) -> None:
    assert 0.93 <= covered[estimator] <= 0.97


def test_where_people_do_more_than_assumed_intervals_miss() -> None:
    """Or else the assumption would say nothing."""
    found = coverage(TARGETS["far"], logs=30, users=2_000, behaviours=("whole",))
    assert found["iips", "whole"].covered < 0.5
    assert found["sips", "whole"].covered > 0.85


def test_right_logs_are_hardly_ever_called_wrong() -> None:
    assert alarms(LOGGING, logs=200, users=200).max() <= 0.015


@pytest.mark.parametrize("wrong", [name for name in WRONG if name != "right"])
def test_wrong_propensities_are_flagged(wrong: str) -> None:
    chi_square, _ = alarms(WRONG[wrong], logs=30, users=600)
    assert chi_square >= 0.9


def test_weights_alone_flag_propensities_that_are_far_off() -> None:
    assert alarms(WRONG["written as uniform"], logs=30, users=USERS)[1] == 1


class TestIntervals:
    def test_users_and_not_decisions_are_counted(self) -> None:
        """Ten copies of everybody's decision say nothing new."""
        values = np.random.default_rng(0).exponential(size=300)
        once = interval_of(values, np.arange(300))
        often = interval_of(np.repeat(values, 10), np.repeat(np.arange(300), 10))
        assert often == pytest.approx(once)
        assert interval_of(np.repeat(values, 10), np.arange(3_000)).standard_error < 0.4 * once.standard_error

    def test_symmetric_values_have_students_interval(self) -> None:
        values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
        expected = student.interval(0.95, 4, loc=0, scale=values.std(ddof=1) / np.sqrt(5))
        assert interval_of(values, np.arange(5))[2:] == pytest.approx(expected)

    def test_a_long_tail_above_reaches_farther_up(self) -> None:
        values = np.random.default_rng(0).pareto(2.5, size=500)
        interval = interval_of(values, np.arange(500))
        assert interval.high - interval.mean > 1.1 * (interval.mean - interval.low)

    def test_the_p_value_is_where_the_interval_just_ends(self) -> None:
        values = np.random.default_rng(1).exponential(size=200)
        users = np.arange(200)
        low, high = interval_of(values, users)[2:]
        assert [p_value(values, users, each) for each in (low, high)] == pytest.approx([0.05, 0.05], abs=1e-9)

    def test_of_one_user_nothing_is_sure(self) -> None:
        interval = interval_of(np.array([1.0, 0.0]), np.array([4, 4]))
        assert (interval.mean, interval.low, interval.high) == (0.5, -np.inf, np.inf)

    def test_a_difference_has_the_errors_of_both(self) -> None:
        one, other = (interval_of(np.random.default_rng(s).normal(size=400), np.arange(400)) for s in (1, 2))
        difference = difference_of(one, other)
        assert difference.standard_error == pytest.approx(np.hypot(one.standard_error, other.standard_error))
        assert not difference.excludes_zero
        assert difference_of(one._replace(mean=1.0), other).excludes_zero


def test_a_log_is_the_same_for_everyone_who_draws_it() -> None:
    one, again = (drawn_logs(5, users=20, logging=LOGGING, target=LOGGING)["whole"] for _ in range(2))
    assert (one.rewards == again.rewards).all()
