"""What must not be believed is refused, and says why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from benchmarks.off_policy_logs import Policy, by_rank, drawn_logs
from models.evaluation.off_policy.checks import effective_size, shown_as_logged
from models.evaluation.off_policy.log import MissingSupport, SlateLog, WrongLog
from models.evaluation.off_policy.report import report_on

LOGGING = by_rank("0.7", 0.7)
NEAR = by_rank("0.5", 0.5)


def log_of(target: Policy, *, users: int = 500, logged_as: Policy | None = None, logging: Policy = LOGGING) -> SlateLog:
    return drawn_logs(2, users=users, logging=logging, target=target, logged_as=logged_as)["cascade"]


def test_a_right_log_with_overlap_answers_everything() -> None:
    report = report_on(log_of(NEAR))
    report.require()
    assert all(each.refusal is None for each in (*report.of_first, *report.of_lists))
    for each in (*report.of_first, *report.of_lists):
        assert each.value.low < each.value.mean < each.value.high
        assert 0 < each.effective_size <= report.lists


def test_wrong_propensities_are_refused() -> None:
    report = report_on(log_of(NEAR, logged_as=by_rank("1.2", 1.2)))
    with pytest.raises(WrongLog, match="as often as its logged probabilities say"):
        report.require()


def test_a_policy_that_shows_what_was_never_shown_is_refused_by_the_mean_weight() -> None:
    """The log believes that nothing is wrong, for everything that was shown had a chance."""
    never = np.where(np.arange(6) == 1, -40.0, 0.0)[None, :]
    without = Policy("never the second", LOGGING.logits + never)
    log = log_of(by_rank("the second first", 1.0, [1, 0, 2, 3, 4, 5]), logging=without)
    report = report_on(log)
    assert report.shown_as_logged.p_value > 0.01
    with pytest.raises(WrongLog, match="had a chance to be shown"):
        report.require()


def test_a_policy_too_far_from_the_log_is_refused_for_want_of_support() -> None:
    report = report_on(log_of(by_rank("turned around", 0.15, [5, 4, 3, 2, 1, 0]), users=200))
    with pytest.raises((MissingSupport, WrongLog)):
        report.require()
    assert any("effective decisions" in (each.refusal or "") for each in report.of_lists)


def test_a_few_users_are_refused() -> None:
    with pytest.raises(MissingSupport, match="12 users"):
        report_on(log_of(LOGGING, users=12)).require()


def test_dm_refuses_kinds_that_were_never_shown() -> None:
    log = log_of(NEAR)
    asked = np.zeros_like(log.target_kinds)
    asked[:, 0, -1] = 0.2
    asked[:, 0, 0] = 0.8
    changed = np.concatenate([asked[:, :1], log.target_kinds[:, 1:]], axis=1)
    dm = next(each for each in report_on(replace(log, target_kinds=changed)).of_first if each.method.name == "DM")
    assert dm.refusal == "20.0% of what the target policy shows is of kinds that the log never showed"


def test_an_empty_log_is_refused() -> None:
    full = log_of(LOGGING, users=2)
    with pytest.raises(MissingSupport, match="empty"):
        SlateLog(*(getattr(full, name)[:0] for name in SlateLog.__slots__))


def test_equal_weights_are_worth_all_decisions_and_one_heavy_one_is_worth_itself() -> None:
    assert effective_size(np.ones((40, 2))) == 40
    assert effective_size(np.array([[1e9], [1.0], [1.0]])) == pytest.approx(1)
    assert effective_size(np.array([[1.0, 1.0], [1.0, 3.0]])) == pytest.approx(16 / 10)


def test_the_chi_square_is_pearsons_where_all_lists_have_the_same_probabilities() -> None:
    log = log_of(LOGGING).place(0)
    shown = np.bincount(log.kinds, minlength=6)
    pearson = chisquare(shown, log.logged_kinds[0, :6] * shown.sum())
    found = shown_as_logged(log)
    assert (found.statistic, found.degrees) == (pytest.approx(pearson.statistic), 5)
    assert found.p_value == pytest.approx(pearson.pvalue)
