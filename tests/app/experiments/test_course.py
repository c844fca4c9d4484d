"""A lift from day to day: what was known then, and not what came later."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from sqlalchemy import Engine

from app.api.admin_experiment_results import ResultsQuery
from app.errors import Conflict, Invalid
from app.experiments.course import MOST_POINTS, Course, course_of, looks
from app.experiments.definitions import Experiment, Variant
from app.experiments.population import Scope
from app.experiments.results import results_of
from tests.app.experiments.examples import CONTROL, DAY, HOUR, START, TREATMENT, act, add_experiment, add_users, expose

END = START + 4 * DAY + 2 * HOUR
EXPERIMENT = Experiment("feed", 1, "feed", None, 1.0, (Variant(CONTROL, 0.5), Variant(TREATMENT, 0.5)))


def course(engine: Engine, window: str, **more: object) -> Course:
    query = ResultsQuery(metric=["likes_per_user"], window=window, **more)  # type: ignore[arg-type]
    return course_of(engine, query.ask("feed"))


@pytest.fixture
def four_days(engine: Engine) -> Engine:
    """Each day 120 new users; the treatment's like more, on the day that they came and on the next."""
    draw = np.random.default_rng(5)
    with engine.begin() as db:
        add_experiment(db, stopped_at=END)
        for day in range(4):
            for variant, mean in ((CONTROL, 1.0), (TREATMENT, 1.5)):
                rows = add_users(db, [f"{variant}-{day}-{number}" for number in range(60)])
                came = START + day * DAY + HOUR
                expose(db, *rows, variant=variant, at=came)
                for row in rows.values():
                    for item in range(int(draw.poisson(mean))):
                        act(db, row, "like", came + (item % 2) * DAY + HOUR, item=item)
    return engine


def test_each_day_knows_the_users_whose_window_was_over(four_days: Engine) -> None:
    points = course(four_days, "12h").variants[TREATMENT]

    assert [point.at for point in points] == [START + DAY, START + 2 * DAY, START + 3 * DAY, START + 4 * DAY, END]
    assert [point.users for point in points] == [120, 240, 360, 480, 480]
    assert [point.users for point in course(four_days, "24h").variants[TREATMENT]] == [120, 240, 360, 480]


def test_its_end_is_the_result(four_days: Engine) -> None:
    ask = ResultsQuery(metric=["likes_per_user"], window="24h").ask("feed")
    result = results_of(four_days, ask).metrics[0].variants[1]
    last = course(four_days, "24h").variants[TREATMENT][-1]

    assert last.lift == pytest.approx(result.relative_lift)
    assert last.interval == pytest.approx(result.relative_interval)
    assert last.always_valid == pytest.approx(result.sequential_relative_interval)
    assert result.users == 240


def test_the_always_valid_band_is_the_wider_one_at_every_look(four_days: Engine) -> None:
    for point in course(four_days, "12h", cuped=False).variants[TREATMENT]:
        assert point.interval is not None
        assert point.always_valid is not None
        assert point.always_valid[0] < point.interval[0] < point.lift < point.interval[1] < point.always_valid[1]


def test_totals_that_grow_have_no_course(four_days: Engine) -> None:
    with pytest.raises(Invalid, match="'all' has no course"):
        course(four_days, "all")


def test_a_course_says_what_is_wrong_and_refuses_what_a_result_refuses(four_days: Engine) -> None:
    assert course(four_days, "12h").problems == ()
    with four_days.begin() as db:
        db.exec_driver_sql("DELETE FROM exposures WHERE variant = 'treatment' AND user_id LIKE '%%-1-%%'")
    assert course(four_days, "12h").problems[0].startswith("sample ratio mismatch")
    with four_days.begin() as db:
        db.exec_driver_sql("INSERT INTO exposure_losses VALUES ('feed', 1, 'control', '2026-03-02', 9)")
    with pytest.raises(Conflict, match="control lost 9"):
        course(four_days, "12h")


def test_a_course_says_what_was_pruned_as_the_result_does(four_days: Engine) -> None:
    with four_days.begin() as db:
        db.exec_driver_sql("INSERT INTO retention_floors (what, kept_from) VALUES ('events', '2026-03-03')")
    ask = ResultsQuery(metric=["ctr"], window="12h").ask("feed")
    found = course_of(four_days, ask, impressions_days=30).problems

    assert found == results_of(four_days, ask, impressions_days=30).problems
    for words in ("exposures are pruned by now", "events from before 2026-03-03", "shown pages from before"):
        assert [problem for problem in found if words in problem]


def test_a_long_experiment_is_looked_at_on_every_so_many_th_day() -> None:
    year = looks(Scope(EXPERIMENT, START + HOUR, START + 365 * DAY + 2 * HOUR))
    day = looks(Scope(EXPERIMENT, START + HOUR, START + 2 * HOUR))

    assert len(year) <= MOST_POINTS + 1
    assert {after - before for before, after in pairwise(year[:-1])} == {timedelta(days=7)}
    assert day == [START + 2 * HOUR]
