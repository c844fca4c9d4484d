"""What a replay's report says: who is ahead, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from models.evaluation.replay import BASELINES
from models.evaluation.replay_report import SERVICE, Cases, Report, Run, clustered_bootstrap

DECAY = "decayed popularity, 3 d"


def run_of(ranks: Sequence[int], *, seed: int = 0, routes: Sequence[str] | None = None) -> Run:
    n = len(ranks)
    return Run(seed, np.array(ranks, np.int32), routes or ["few"] * n, ["blend"] * n, {"events/s": 200.0}, {})


def report_of(*runs: Run, users: Sequence[int], best: Sequence[int] | None = None, k: int = 10) -> Report:
    """All baselines miss everything, but for DECAY, which has the ranks `best`."""
    n = len(users)
    baselines = {name: np.zeros(n, np.int32) for name in BASELINES}
    baselines[DECAY] = np.array(best or [0] * n, np.int32)
    cases = Cases(np.array(users, np.int32), np.array([user < 2 for user in users]))
    return Report("a log", {"events replayed": n}, k, cases, baselines, runs)


def test_the_lead_is_the_mean_of_the_differences_case_by_case() -> None:
    report = report_of(run_of([1, 0, 3, 1]), users=[0, 1, 2, 3], best=[2, 1, 3, 0])

    lead = report.gains(report.median)[DECAY]
    assert lead.mean == pytest.approx((1 - 1 / math.log2(3) - 1 + 0 + 1) / 4)
    assert lead.low < lead.mean < lead.high


def test_users_are_drawn_with_all_their_cases() -> None:
    """One user with many cases is one piece of evidence, not many."""
    values = np.array([[1.0]] * 50 + [[0.0]] * 2)
    one_and_two_others = np.array([0] * 50 + [1, 2], np.int32)
    all_apart = np.arange(52, dtype=np.int32)

    (clustered,) = clustered_bootstrap(values, one_and_two_others, seed=0)
    (apart,) = clustered_bootstrap(values, all_apart, seed=0)
    assert clustered.mean == apart.mean == pytest.approx(50 / 52)
    assert clustered.low == 0
    assert clustered.high == 1
    assert apart.low > 0.88


def test_what_is_the_same_for_everybody_is_sure() -> None:
    (sure,) = clustered_bootstrap(np.full((30, 1), 0.25), np.arange(30, dtype=np.int32) // 4, seed=0)
    assert sure.low == pytest.approx(0.25)
    assert sure.high == pytest.approx(0.25)


def test_the_report_is_about_the_median_seed() -> None:
    runs = [run_of([1, 1, 0], seed=5), run_of([0, 0, 0], seed=6), run_of([1, 0, 0], seed=7)]

    assert report_of(*runs, users=[0, 1, 2]).median.seed == 7
    assert report_of(*runs[:2], users=[0, 1, 2]).median.seed == 6


def test_the_best_decay_is_the_one_with_the_highest_ndcg() -> None:
    report = report_of(run_of([0, 0]), users=[0, 1], best=[4, 0])
    report.baselines["decayed popularity, 14 d"][:] = [9, 9]

    assert report.best_decay == "decayed popularity, 14 d"


def test_groups_are_routes_and_acquaintance() -> None:
    run = run_of([1, 0, 2, 1], routes=["new", "few", "new", "established"])
    rows = {row[0]: row[1:4] for row in report_of(run, users=[0, 1, 2, 3]).tables()[1].rows}

    assert rows["all"] == ("4", "0.7500", f"{(2 + 1 / math.log2(3)) / 4:.4f}")
    assert rows["route new"] == ("2", "1.0000", f"{(1 + 1 / math.log2(3)) / 2:.4f}")
    assert rows["route few"] == ("1", "0.0000", "0.0000")
    assert rows["known before the cut"][0] == rows["not known before"][0] == "2"


def test_ranks_beyond_k_are_misses() -> None:
    rows = report_of(run_of([1, 6]), users=[0, 1], best=[5, 6], k=5).tables()[0].rows

    assert {row[0]: row[1] for row in rows}[SERVICE] == "0.5000"
    assert {row[0]: row[1] for row in rows}[DECAY] == "0.5000"


def test_several_seeds_get_a_table() -> None:
    runs = [run_of([1, 0], seed=seed) for seed in (3, 4)]

    assert [row[0] for row in report_of(*runs, users=[0, 1]).tables()[2].rows] == ["3", "4"]
    assert len(report_of(runs[0], users=[0, 1]).tables()) == 2


def test_markdown_and_json_say_what_is_measured() -> None:
    report = report_of(run_of([1, 0]), users=[0, 1], best=[1, 0])

    markdown = report.as_markdown()
    assert "under what they were shown" in markdown
    assert f"| {SERVICE} | 0.5000 | 0.5000 |" in markdown
    stored = orjson.loads(orjson.dumps(report.as_json()))
    assert stored["runs"][0]["hit_rate"] == 0.5
    assert stored["baselines"][DECAY]["ndcg"] == 0.5
    assert stored["runs"][0]["lead_in_ndcg"][DECAY]["mean"] == 0
    assert "under what they were shown" in stored["measures"]


def test_answers_must_be_complete() -> None:
    with pytest.raises(ValueError, match="lacks"):
        Run(0, np.zeros(2, np.int32), ["new"], ["blend", "blend"], {}, {})


def test_answers_agree_with_who_led_them_where_the_item_stands_the_same() -> None:
    alone = {"blend": np.array([1, 2, 0, 4], np.int32), "popularity": np.array([9, 9, 9, 5], np.int32)}
    leaders = ["blend", "blend", "nobody", "popularity"]
    run = Run(0, np.array([1, 3, 7, 5], np.int32), ["few"] * 4, leaders, {}, alone)

    assert run.agreement == pytest.approx(2 / 3)
    report = report_of(run, users=[0, 1, 2, 3])
    assert "66.67%" in report.as_markdown()
    assert {"`blend` alone", "`popularity` alone"} < {row[0] for row in report.tables()[0].rows}
    assert report.as_json()["runs"][0]["recipes"]["popularity"]["hit_rate"] == 1
