"""What the users of each arm did: which events count, when, for whom, and what is missing rather than nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import Connection, Engine

from app.experiments.definitions import Experiment
from app.experiments.metrics import metric_of
from app.experiments.outcomes import outcomes_of
from app.experiments.population import MARKS, Scope, population_of
from app.experiments.statistics import Outcomes
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
NOW = START + 10 * DAY


@pytest.fixture
def db(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        yield connection


@pytest.fixture
def experiment(db: Connection) -> Experiment:
    return add_experiment(db)


def scope_of(experiment: Experiment, until: datetime = NOW, **more: object) -> Scope:
    return Scope(experiment, START, until, **more)  # type: ignore[arg-type]


def read(db: Connection, scope: Scope, name: str, **more: bool) -> list[Outcomes]:
    return outcomes_of(db, scope, [metric_of(name)], **more)[name]


def numbers(array: object) -> list[float]:
    return sorted(np.asarray(array).tolist())


def test_everything_after_the_first_exposure_counts_whatever_it_came_from(
    db: Connection, experiment: Experiment
) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    act(db, rows["ann"], "like", EXPOSED)
    act(db, rows["ann"], "like", EXPOSED + 8 * DAY, item=7)
    act(db, rows["ann"], "like", EXPOSED - HOUR)
    act(db, rows["ann"], "click", EXPOSED + HOUR)
    control, treatment = read(db, scope_of(experiment), "like:count")

    assert control.numerator.tolist() == [2]
    assert control.before_numerator is not None
    assert control.before_numerator.tolist() == [1]
    assert control.denominator is None
    assert treatment.users == 0


def test_a_user_who_did_nothing_counts_as_nothing_and_one_without_a_past_as_unknown(
    db: Connection, experiment: Experiment
) -> None:
    """The third is no row of `users` even: nobody who only looked is."""
    rows = add_users(db, ["idle lately", "new"])
    expose(db, "idle lately", "new", "unheard of", variant=CONTROL)
    act(db, rows["idle lately"], "view", START - 300 * DAY)
    control, _ = read(db, scope_of(experiment), "like:count")

    assert control.numerator.tolist() == [0, 0, 0]
    assert control.before_numerator is not None
    assert numbers(control.before_numerator[~np.isnan(control.before_numerator)]) == [0]


def test_the_time_before_is_as_long_as_the_time_after(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    for days in (1, 3, 8, 10):
        act(db, rows["ann"], "like", EXPOSED - days * DAY)
    [whole, _], [window, _] = (
        read(db, scope_of(experiment, window=length), "like:count") for length in (None, 2 * DAY)
    )

    assert NOW - EXPOSED == 9 * DAY
    assert (whole.before_numerator, window.before_numerator) == (np.array([3.0]), np.array([1.0]))


def test_a_clock_that_runs_ahead_is_corrected_by_when_the_event_came(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ahead", "offline"])
    expose(db, "ahead", "offline", variant=CONTROL)
    act(db, rows["ahead"], "like", EXPOSED + timedelta(minutes=4), received_at=EXPOSED - timedelta(minutes=1))
    act(db, rows["offline"], "like", EXPOSED - HOUR, received_at=EXPOSED + HOUR)
    control, _ = read(db, scope_of(experiment), "like:count")

    assert control.numerator.tolist() == [0, 0]
    assert numbers(control.before_numerator) == [1, 1]


def test_a_window_is_each_users_own_and_who_is_still_in_it_waits(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["early", "late"])
    expose(db, "early", variant=CONTROL)
    expose(db, "late", variant=CONTROL, at=NOW - DAY)
    for user in rows.values():
        act(db, user, "like", EXPOSED + DAY)
        act(db, user, "like", EXPOSED + 2 * DAY)
        act(db, user, "like", NOW - HOUR)
    scope = scope_of(experiment, window=2 * DAY)
    control, _ = read(db, scope, "like:count")

    assert control.numerator.tolist() == [1]
    assert population_of(db, scope).waiting == {CONTROL: 1, TREATMENT: 0}
    assert population_of(db, scope).in_arms == {CONTROL: 2, TREATMENT: 0}


def test_what_comes_after_the_end_does_not_count(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    expose(db, "bob", variant=CONTROL, at=NOW)
    act(db, rows["ann"], "like", NOW)
    control, _ = read(db, scope_of(experiment), "like:count")

    assert control.numerator.tolist() == [0]


def test_who_was_seen_in_two_variants_or_is_marked_is_left_out_and_counted(
    db: Connection, experiment: Experiment
) -> None:
    expose(db, "fine", "both", variant=CONTROL)
    expose(db, "both", variant=TREATMENT)
    expose(db, "fell back", variant=TREATMENT, marks=["fallback"])
    for mark in MARKS:
        expose(db, mark, variant=TREATMENT, marks=[mark, "fallback"])
    expose(db, "forced bot", variant=TREATMENT, marks=["bot", "forced"])
    control, treatment = read(db, scope_of(experiment), "like:count")
    found = population_of(db, scope_of(experiment))

    assert (control.users, treatment.users) == (1, 1)
    assert found.in_arms == {CONTROL: 1, TREATMENT: 1}
    assert found.left_out == {"two_variants": 1, "forced": 2, "bot": 1, "explored": 1}

    with_bots = scope_of(experiment, included=frozenset({"bot", "explored"}))
    assert [arm.users for arm in read(db, with_bots, "like:count")] == [1, 3]
    assert population_of(db, with_bots).left_out == {"two_variants": 1, "forced": 2}


def test_another_run_or_experiment_is_another_matter(db: Connection, experiment: Experiment) -> None:
    expose(db, "ann", variant=CONTROL)
    expose(db, "bob", variant=TREATMENT, run=2)
    expose(db, "cat", variant=TREATMENT, experiment="other")

    assert population_of(db, scope_of(experiment)).in_arms == {CONTROL: 1, TREATMENT: 0}


def test_the_population_by_day_route_and_worker(db: Connection, experiment: Experiment) -> None:
    expose(db, "a", "b", variant=CONTROL, route="new", worker="w2")
    expose(db, "c", variant=TREATMENT, at=EXPOSED + DAY)
    found = population_of(db, scope_of(experiment))

    assert found.by["day"] == {"2026-03-03": {CONTROL: 2, TREATMENT: 0}, "2026-03-04": {CONTROL: 0, TREATMENT: 1}}
    assert found.by["route"] == {"new": {CONTROL: 2, TREATMENT: 0}, "established": {CONTROL: 0, TREATMENT: 1}}
    assert list(found.by["worker"]) == ["w2", "w1"]


def test_sums_means_and_shares_of_users(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", "idle", variant=CONTROL)
    for item, value in enumerate((2.0, 5.0)):
        act(db, rows["ann"], "rating", EXPOSED + HOUR, item=item, value=value)
    found = outcomes_of(db, scope_of(experiment), [metric_of(f"rating:{each}") for each in ("sum", "mean", "users")])

    assert numbers(found["rating:sum"][0].numerator) == [0, 7]
    assert numbers(found["rating:mean"][0].numerator) == [0, 7]
    assert numbers(found["rating:mean"][0].denominator) == [0, 2]
    assert numbers(found["rating:users"][0].numerator) == [0, 1]


def test_per_session_all_sessions_count_those_without_such_an_event_too(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    act(db, rows["ann"], "listen", EXPOSED + HOUR, value=0.5, session="s1")
    act(db, rows["ann"], "listen", EXPOSED + HOUR, item=1, value=1.0, session="s1")
    act(db, rows["ann"], "skip", EXPOSED + 2 * HOUR, session="s2")
    act(db, rows["ann"], "listen", EXPOSED + 3 * HOUR, item=2, value=0.9)
    act(db, rows["ann"], "listen", EXPOSED - HOUR, item=3, value=0.1, session="s0")
    found = outcomes_of(
        db, scope_of(experiment), [metric_of("listening_time_per_session"), metric_of("skip:count_per_session")]
    )
    listening, skips = (found[name][0] for name in ("listening_time_per_session", "skip:count_per_session"))

    assert (listening.numerator, listening.denominator) == (np.array([1.5]), np.array([2.0]))
    assert (listening.before_numerator, listening.before_denominator) == (np.array([0.1]), np.array([1.0]))
    assert (skips.numerator, skips.denominator) == (np.array([1.0]), np.array([2.0]))


def test_a_metric_does_not_depend_on_those_beside_it(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    for when in (EXPOSED + HOUR, EXPOSED - HOUR):
        act(db, rows["ann"], "listen", when, value=1.5, session=f"listened {when}")
        act(db, rows["ann"], "impression", when, session=f"only looked {when}")
    names = ["listen:count_per_session", "listening_time_per_session", "impression:count_per_session"]
    together = outcomes_of(db, scope_of(experiment), [metric_of(name) for name in names])

    for name, sessions in zip(names, (1, 1, 2), strict=True):
        for found in (together[name][0], read(db, scope_of(experiment), name)[0]):
            assert (found.denominator, found.before_denominator) == (np.array([sessions]), np.array([sessions]))


def test_what_was_on_screen_can_be_counted(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    act(db, rows["ann"], "impression", EXPOSED + HOUR)
    act(db, rows["ann"], "view", EXPOSED + HOUR)

    assert read(db, scope_of(experiment), "impression:count")[0].numerator.tolist() == [1]


def test_a_rate_is_of_the_items_on_the_experiments_pages(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=TREATMENT)
    mine = {"feed": TREATMENT}
    # The page of the first exposure may be a moment older than its exposure: who wrote which first is no matter.
    show(db, "ann", "p1", EXPOSED - timedelta(milliseconds=3), variants=mine)
    show(db, "ann", "p2", EXPOSED + HOUR, items=(1, 9), variants=mine)
    show(db, "ann", "elsewhere", EXPOSED + HOUR, variants={"other": TREATMENT})
    show(db, "ann", "before", EXPOSED - HOUR, items=(4, 5))
    show(db, "ann", "before elsewhere", EXPOSED - HOUR, items=(4, 5), surface="sidebar")
    for item, request in ((1, "p1"), (1, "p2"), (9, "p1"), (2, "elsewhere"), (3, None), (2, "made up")):
        act(db, rows["ann"], "click", EXPOSED + 2 * HOUR, item=item, request=request)
    act(db, rows["ann"], "click", EXPOSED - timedelta(minutes=30), item=4, request="before")
    act(db, rows["ann"], "click", EXPOSED + 3 * HOUR, item=1, request="p1")
    act(db, rows["ann"], "like", EXPOSED + 3 * HOUR, item=2, request="p1")
    act(db, rows["ann"], "view", START - DAY)
    found = outcomes_of(db, scope_of(experiment), [metric_of("ctr"), metric_of("like_rate")])
    clicks, likes = found["ctr"][1], found["like_rate"][1]

    assert (clicks.numerator, clicks.denominator) == (np.array([2.0]), np.array([5.0]))
    assert (likes.numerator, likes.denominator) == (np.array([1.0]), np.array([5.0]))
    assert (clicks.before_numerator, clicks.before_denominator) == (np.array([1.0]), np.array([2.0]))
    assert (likes.before_numerator, likes.before_denominator) == (np.array([0.0]), np.array([2.0]))


def test_nobody_elses_click_counts_for_a_page(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann", "bob"])
    expose(db, "ann", "bob", variant=CONTROL)
    show(db, "ann", "p1", EXPOSED + HOUR, variants={"feed": CONTROL})
    act(db, rows["bob"], "click", EXPOSED + 2 * HOUR, item=1, request="p1")
    clicks, _ = read(db, scope_of(experiment), "ctr")

    assert numbers(clicks.numerator) == [0, 0]
    assert numbers(clicks.denominator) == [0, 3]


def test_a_rate_of_what_was_on_screen_counts_no_other_item(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    show(db, "ann", "p1", EXPOSED + HOUR, items=(1, 2, 3, 4), variants={"feed": CONTROL})
    for item in (1, 2, 77):
        act(db, rows["ann"], "impression", EXPOSED + HOUR, item=item, request="p1")
    act(db, rows["ann"], "impression", EXPOSED + 2 * HOUR, item=2, request="p1")
    for item in (2, 3):
        act(db, rows["ann"], "click", EXPOSED + 2 * HOUR, item=item, request="p1")
    found = outcomes_of(db, scope_of(experiment), [metric_of("ctr_on_screen"), metric_of("ctr")])
    on_screen, shown = found["ctr_on_screen"][0], found["ctr"][0]

    assert (on_screen.numerator, on_screen.denominator) == (np.array([1.0]), np.array([2.0]))
    assert (shown.numerator, shown.denominator) == (np.array([2.0]), np.array([4.0]))


def test_pages_of_an_earlier_run_are_of_the_past(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    act(db, rows["ann"], "view", START - DAY)
    show(db, "ann", "earlier run", START - HOUR, variants={"feed": CONTROL})
    clicks, _ = read(db, scope_of(experiment), "ctr")

    assert (clicks.denominator, clicks.before_denominator) == (np.array([0.0]), np.array([3.0]))


def test_what_is_touched_after_the_exposure_is_not_of_before_whenever_it_was_shown(
    db: Connection, experiment: Experiment
) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    show(db, "ann", "earlier", EXPOSED - HOUR)
    act(db, rows["ann"], "click", EXPOSED - HOUR, item=1, request="earlier")
    act(db, rows["ann"], "click", EXPOSED, item=2, request="earlier")
    ahead = {"at": EXPOSED + timedelta(minutes=4), "received_at": EXPOSED - timedelta(minutes=1)}
    act(db, rows["ann"], "click", item=3, request="earlier", **ahead)
    clicks, _ = read(db, scope_of(experiment), "ctr")

    assert (clicks.numerator, clicks.denominator) == (np.array([0.0]), np.array([0.0]))
    assert (clicks.before_numerator, clicks.before_denominator) == (np.array([2.0]), np.array([3.0]))


def test_a_rate_is_final_when_the_window_is_over_or_the_experiment(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    show(db, "ann", "p1", EXPOSED + HOUR, variants={"feed": CONTROL})
    for item, at in ((1, EXPOSED + 2 * HOUR), (2, EXPOSED + DAY), (3, NOW)):
        act(db, rows["ann"], "click", at, item=item, request="p1")
    [window, _], [whole, _] = (read(db, scope_of(experiment, window=length), "ctr") for length in (DAY, None))

    assert (window.numerator, window.denominator) == (np.array([1.0]), np.array([3.0]))
    assert (whole.numerator, whole.denominator) == (np.array([2.0]), np.array([3.0]))


def test_a_holdout_is_compared_on_every_surface(db: Connection) -> None:
    experiment = add_experiment(db, holdout=True)
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    act(db, rows["ann"], "view", START - DAY)
    show(db, "ann", "p1", EXPOSED + HOUR, variants={"feed": CONTROL}, surface="sidebar")
    show(db, "ann", "p0", EXPOSED - HOUR, surface="sidebar")
    clicks, _ = read(db, scope_of(experiment), "ctr")

    assert (clicks.denominator, clicks.before_denominator) == (np.array([3.0]), np.array([3.0]))


def test_without_the_time_before_nothing_of_it_is_read(db: Connection, experiment: Experiment) -> None:
    rows = add_users(db, ["ann"])
    expose(db, "ann", variant=CONTROL)
    act(db, rows["ann"], "like", EXPOSED + HOUR)
    show(db, "ann", "p1", EXPOSED + HOUR, variants={"feed": CONTROL})
    for name, above in (("like:count", 1), ("ctr", 0), ("rating:mean", 0)):
        control, _ = read(db, scope_of(experiment), name, with_before=False)
        assert control.numerator.tolist() == [above]
        assert (control.before_numerator, control.before_denominator) == (None, None)
