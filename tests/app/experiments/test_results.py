"""The result of an experiment: what decides over its worth, and that each figure is the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
from sqlalchemy import Connection, Engine, insert

from app.api.admin_experiment_results import ResultsBody, ResultsQuery
from app.errors import Conflict, NotFound
from app.experiments.course import course_of
from app.experiments.results import Results, results_of
from app.experiments.statistics import Outcomes, adjusted, compare
from app.storage import tables
from tests.app.experiments.examples import (
    CONTROL,
    DAY,
    HOUR,
    START,
    TREATMENT,
    act,
    add_experiment,
    add_users,
    expose,
    show,
)

EXPOSED = START + DAY
END = START + 10 * DAY


def asked(engine: Engine, *metrics: str, key: str = "feed", impressions_days: int = 0, **more: Any) -> Results:
    query = ResultsQuery(metric=list(metrics) or ["likes_per_user"], **more)
    return results_of(engine, query.ask(key), impressions_days=impressions_days)


def populate(db: Connection, likes: Mapping[str, list[int]]) -> None:
    """Users of each variant, with so many likes after their exposure, and one view before the experiment."""
    for variant, counts in likes.items():
        rows = add_users(db, [f"{variant}-{number}" for number in range(len(counts))])
        expose(db, *rows, variant=variant)
        for row, count in zip(rows.values(), counts, strict=True):
            act(db, row, "view", START - DAY)
            for item in range(count):
                act(db, row, "like", EXPOSED + HOUR, item=item)


def drawn(mean: float, users: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).poisson(mean, users).tolist()


LIKES = {CONTROL: drawn(1.0, 60, 1), TREATMENT: drawn(2.0, 60, 2)}


@pytest.fixture
def stopped(engine: Engine) -> Engine:
    """An experiment that has ended, in which the treatment doubles the likes."""
    with engine.begin() as db:
        add_experiment(db, stopped_at=END)
        populate(db, LIKES)
    return engine


def test_figures_are_what_the_statistics_say_of_what_users_did(stopped: Engine) -> None:
    found = asked(stopped, "likes_per_user", cuped=False)
    [metric] = found.metrics
    control, treatment = metric.variants
    both = [Outcomes(np.array(LIKES[name], float)) for name in (CONTROL, TREATMENT)]
    expected = compare(*both, cuped=False)

    assert (found.trustworthy, found.problems) == (True, ())
    [note] = found.notes
    assert "always-valid" in note
    assert (control.variant, control.users, control.mean, control.difference) == (
        CONTROL,
        60,
        np.mean(LIKES[CONTROL]),
        None,
    )
    assert treatment.mean == pytest.approx(np.mean(LIKES[TREATMENT]))
    assert treatment.difference == pytest.approx(expected.difference)
    assert treatment.interval == pytest.approx(expected.interval)
    assert treatment.p_value == pytest.approx(expected.p_value)
    assert treatment.sequential_interval is None
    assert treatment.relative_interval == pytest.approx(expected.relative_interval)
    assert treatment.adjusted_p_value == treatment.p_value
    assert treatment.days_left is None
    assert (metric.unit, metric.of) == ("like events per user", "users")


def test_the_answer_fits_its_description_and_says_first_whether_to_trust_it(stopped: Engine) -> None:
    answer = orjson.loads(orjson.dumps(asked(stopped, "ctr", "like:users", "mean_rating")))

    ResultsBody.model_validate(answer, extra="forbid")
    assert set(answer) == set(ResultsBody.model_fields)
    assert list(answer)[:6] == ["key", "run", "trustworthy", "problems", "sample_ratio", "lost_exposures"]


def test_many_metrics_are_adjusted_together(stopped: Engine) -> None:
    names = ["likes_per_user", "like:users", "view:count", "view:users"]
    for method in ("holm", "benjamini_hochberg"):
        tested = [metric.variants[1] for metric in asked(stopped, *names, correction=method).metrics]
        tested = [each for each in tested if each.p_value is not None]
        assert [each.adjusted_p_value for each in tested] == adjusted([each.p_value for each in tested], method)
    assert all(m.variants[1].adjusted_p_value is None for m in asked(stopped, *names, correction="none").metrics)


def test_what_the_data_can_t_tell_is_said(stopped: Engine) -> None:
    """Nobody was shown a page: no rate can be computed, and the other metric is none the worse."""
    rate, likes = asked(stopped, "ctr", "likes_per_user").metrics

    assert rate.variants[0].mean is None
    assert rate.variants[1].difference is None
    assert rate.variants[1].missing
    assert likes.variants[1].missing is None


def test_an_experiment_without_users_has_no_figures(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
    found = asked(engine, "likes_per_user", "ctr")

    assert [each.users for metric in found.metrics for each in metric.variants] == [0, 0, 0, 0]
    assert found.metrics[0].variants[1].missing
    assert found.sample_ratio.is_mismatch is False


def test_a_mismatch_takes_the_trust_and_leaves_the_figures(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db, stopped_at=END)
        populate(db, {CONTROL: [1] * 60, TREATMENT: [0, 2] * 10})
    found = asked(engine)

    assert not found.trustworthy
    assert found.sample_ratio.is_mismatch
    assert found.sample_ratio.counts == {CONTROL: 60, TREATMENT: 20}
    assert found.sample_ratio.expected == {CONTROL: 40, TREATMENT: 40}
    assert found.problems[0].startswith("sample ratio mismatch")
    assert "control 60, treatment 20" in found.problems[0]
    assert found.metrics[0].variants[1].difference == pytest.approx(0)


def test_one_bad_worker_is_found_that_all_others_hide(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
        for worker in range(8):
            for variant in (CONTROL, TREATMENT):
                lost = 60 if (worker, variant) == (3, TREATMENT) else 0
                users = [f"{worker}-{variant}-{number}" for number in range(150 - lost)]
                expose(db, *users, variant=variant, worker=f"w{worker}")
    found = asked(engine)
    by_worker = {each.value: each for each in found.sample_ratio.by["worker"]}

    assert not found.sample_ratio.is_mismatch
    assert [value for value, each in by_worker.items() if each.is_mismatch] == ["w3"]
    assert by_worker["w3"].counts == {CONTROL: 150, TREATMENT: 90}
    assert [problem for problem in found.problems if "by worker: w3 has control 150, treatment 90" in problem]
    assert not any(each.is_mismatch for what in ("day", "route") for each in found.sample_ratio.by[what])


def test_weights_need_not_be_equal(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db, weights={CONTROL: 0.8, "a": 0.1, "b": 0.1})
        for variant, users in ((CONTROL, 80), ("a", 11), ("b", 9)):
            expose(db, *(f"{variant}{number}" for number in range(users)), variant=variant)
    found = asked(engine)

    assert found.trustworthy
    assert found.sample_ratio.expected == pytest.approx({CONTROL: 80, "a": 10, "b": 10})
    assert [each.variant for each in found.metrics[0].variants] == [CONTROL, "a", "b"]


def lose(db: Connection, variant: str, lost: int) -> None:
    day = date(2026, 3, 3)
    db.execute(insert(tables.exposure_losses).values(experiment="feed", run=1, variant=variant, day=day, lost=lost))


def test_lost_exposures_refuse_the_result_naming_them(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
        for variant in (CONTROL, TREATMENT):
            expose(db, *(f"{variant}{number}" for number in range(1000)), variant=variant)
        lose(db, TREATMENT, 1)
    assert asked(engine).lost_exposures.by_variant == {CONTROL: 0, TREATMENT: 1}
    assert asked(engine).lost_exposures.share == pytest.approx(1 / 2001)

    with engine.begin() as db:
        db.execute(tables.exposure_losses.update().values(lost=2))
    with pytest.raises(Conflict, match="treatment lost 2 beside 1,000 kept"):
        asked(engine)


def test_users_in_two_variants_take_the_trust_when_they_are_many(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
        for variant in (CONTROL, TREATMENT):
            expose(db, *(f"{variant}{number}" for number in range(50)), "both", "both too", variant=variant)
    found = asked(engine)

    assert found.left_out["two_variants"] == 2
    assert any("two variants" in problem for problem in found.problems)


def test_while_totals_grow_nothing_always_valid_is_said_but_of_a_window(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
        populate(db, LIKES)
        expose(db, "just come", variant=CONTROL, at=results_now(db) - HOUR)
    growing, closed = asked(engine), asked(engine, window="2d")

    assert growing.metrics[0].variants[1].sequential_interval is None
    assert any("always-valid" in note for note in growing.notes)
    assert closed.metrics[0].variants[1].sequential_interval is not None
    assert [each.waiting for each in closed.metrics[0].variants] == [1, 0]
    assert [each.users for each in closed.metrics[0].variants] == [60, 60]
    assert any(note.startswith("1 users are not in the figures yet") for note in closed.notes)
    assert closed.window_hours == 48


def results_now(db: Connection) -> Any:
    return db.exec_driver_sql("select now()").scalar_one()


def test_days_left_follow_from_the_effect_that_is_looked_for(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db, started_at=results_now(db) - 10 * DAY)
        for variant in (CONTROL, TREATMENT):
            rows = add_users(db, [f"{variant}{number}" for number in range(50)])
            expose(db, *rows, variant=variant, at=results_now(db) - 5 * DAY)
            for number, row in enumerate(rows.values()):
                for item in range(number % 3):
                    act(db, row, "like", results_now(db) - DAY, item=item)
    small, large = (asked(engine, effect=effect).metrics[0].variants[1] for effect in (0.1, 10.0))
    half = asked(engine, effect=0.2).metrics[0].variants[1]

    assert large.days_left == 0
    assert small.days_left is not None
    assert half.days_left is not None
    # A quarter of the users for twice the effect; 100 have come in ten days.
    assert small.days_left + 10 == pytest.approx(4 * (half.days_left + 10), rel=0.01)
    assert small.minimum_detectable_effect == pytest.approx(
        2.8016 * np.sqrt(2 * np.var([0, 1, 2] * 16 + [0, 1], ddof=1) / 50), rel=1e-3
    )


def test_days_left_know_who_has_come_already(engine: Engine) -> None:
    """40 of a window are in the figures and 400 wait, the last of them for another day: nobody new is needed."""
    with engine.begin() as db:
        now = results_now(db)
        add_experiment(db, started_at=now - 10 * DAY)
        for variant in (CONTROL, TREATMENT):
            rows = add_users(db, [f"{variant}{number}" for number in range(20)])
            expose(db, *rows, variant=variant, at=now - 5 * DAY)
            expose(db, *(f"{variant} waits {number}" for number in range(199)), variant=variant, at=now - 1.5 * DAY)
            expose(db, f"{variant} last", variant=variant, at=now - DAY)
            for number, row in enumerate(rows.values()):
                for item in range(number % 3):
                    act(db, row, "like", now - 4 * DAY, item=item)
    (control, soon), (_, later) = (
        asked(engine, window="2d", effect=effect).metrics[0].variants for effect in (0.4, 0.1)
    )

    assert (soon.users, soon.waiting) == (20, 200)
    assert soon.days_left == pytest.approx(1.0, abs=0.1)
    # 44 come a day, and each of them is watched for two.
    needed = 40 * (soon.minimum_detectable_effect / (0.1 * control.mean)) ** 2
    assert later.days_left == pytest.approx((needed - 440) / 44 + 2, rel=0.01)


def test_a_mean_next_to_nothing_has_a_result(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
        for variant in (CONTROL, TREATMENT):
            rows = add_users(db, [f"{variant}{number}" for number in range(4)])
            expose(db, *rows, variant=variant)
            for number, row in enumerate(rows.values()):
                act(db, row, "listen", EXPOSED + HOUR, value=number * 1e-100)
    measured = asked(engine, "listen:sum", effect=1e-300).metrics[0].variants[1]

    assert measured.difference == 0.0
    assert measured.days_left is None


def test_cuped_takes_out_what_the_past_explains(engine: Engine) -> None:
    habits = np.random.default_rng(3).integers(0, 6, 80)
    with engine.begin() as db:
        add_experiment(db, stopped_at=END)
        rows = add_users(db, [f"u{number}" for number in range(80)])
        for number, ((user, row), habit) in enumerate(zip(rows.items(), habits.tolist(), strict=True)):
            expose(db, user, variant=TREATMENT if number % 2 else CONTROL)
            act(db, row, "view", START - 30 * DAY)
            for item in range(habit):
                act(db, row, "like", EXPOSED - DAY, item=item)
            for item in range(habit + number % 2 + number // 2 % 2):
                act(db, row, "like", EXPOSED + DAY, item=100 + item)
    adjusted_, plain = (asked(engine, cuped=cuped).metrics[0].variants[1] for cuped in (True, False))

    assert adjusted_.variance_reduction is not None
    assert adjusted_.variance_reduction > 0.9
    assert adjusted_.difference == pytest.approx(1, abs=0.2)
    assert plain.variance_reduction is None
    assert np.ptp(adjusted_.interval) < np.ptp(plain.interval) / 2


def test_winsorising_keeps_one_user_from_deciding(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db, stopped_at=END)
        populate(db, {CONTROL: [0, 1] * 20, TREATMENT: [0, 1] * 19 + [0, 200]})
    plain, cut = (asked(engine, winsor=winsor).metrics[0].variants[1] for winsor in (None, 0.95))

    assert plain.difference is not None
    assert cut.difference is not None
    assert plain.difference > 4
    assert cut.difference == pytest.approx(0)


def test_the_estimand_says_what_the_arms_share(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db)
        add_experiment(db, "split", data="split")
        add_experiment(db, "holdout", holdout=True)
    shared, split, holdout = (asked(engine, key=key) for key in ("feed", "split", "holdout"))

    assert "same counters and training data" in shared.estimand
    assert "its own users" in split.estimand
    assert holdout.estimand.startswith("The effect of everything that was shipped")
    assert [each.data for each in (shared, split, holdout)] == ["shared", "split", "shared"]


def test_what_was_pruned_meanwhile_takes_the_trust(stopped: Engine) -> None:
    with stopped.begin() as db:
        db.execute(insert(tables.retention_floors).values(what="events", kept_from=START + DAY))
    assert any("events from before 2026-03-03 were pruned" in problem for problem in asked(stopped).problems)

    found, *others = asked(stopped, "ctr", impressions_days=30).problems
    assert found.startswith("it stopped on 2026-03-12, and exposures are pruned by now")
    assert any("shown pages from before" in problem for problem in others)
    assert not any("shown pages" in problem for problem in asked(stopped, impressions_days=30).problems)


def test_a_run_of_its_own_for_each_start(stopped: Engine) -> None:
    with stopped.begin() as db:
        add_experiment(db, run=2, started_at=END + DAY)
        expose(db, "ann", variant=CONTROL, run=2, at=END + 2 * DAY)

    assert asked(stopped).sample_ratio.counts == {CONTROL: 1, TREATMENT: 0}
    assert asked(stopped, run=1).sample_ratio.counts == {CONTROL: 60, TREATMENT: 60}


def test_a_draft_hides_no_result(stopped: Engine) -> None:
    with stopped.begin() as db:
        add_experiment(db, run=2, started_at=None)

    assert asked(stopped).run == 1
    assert course_of(stopped, ResultsQuery(window="1d").ask("feed")).key == "feed"
    with pytest.raises(Conflict, match="it is a draft"):
        asked(stopped, run=2)


def test_what_has_not_begun_or_does_not_exist(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db, started_at=None)
    with pytest.raises(Conflict, match="'feed' has no results: it is a draft"):
        asked(engine)
    with pytest.raises(NotFound, match="'other'"):
        asked(engine, key="other")


def test_an_erased_user_is_gone_from_the_figures(stopped: Engine) -> None:
    with stopped.begin() as db:
        db.execute(tables.exposures.delete().where(tables.exposures.c.user_id == "control-0"))
        db.execute(tables.users.delete().where(tables.users.c.user_id == "control-0"))

    assert asked(stopped).metrics[0].variants[0].users == 59


def test_slate_metrics_tell_the_arms_apart_by_what_their_pages_brought(engine: Engine) -> None:
    with engine.begin() as db:
        add_experiment(db, stopped_at=END)
        for variant, clicks in ((CONTROL, 1), (TREATMENT, 2)):
            rows = add_users(db, [f"{variant}{number}" for number in range(30)])
            expose(db, *rows, variant=variant)
            for number, (user, row) in enumerate(rows.items()):
                show(db, user, f"page-{user}", EXPOSED, items=range(10), variants={"feed": variant})
                for item in range(clicks + number % 2):
                    act(db, row, "click", EXPOSED + timedelta(minutes=1), item=item, request=f"page-{user}")
    [metric] = asked(engine, "ctr").metrics
    control, treatment = metric.variants

    assert (control.mean, treatment.mean) == (pytest.approx(0.15), pytest.approx(0.25))
    assert treatment.p_value is not None
    assert treatment.p_value < 1e-6
    assert metric.of == "slates"
