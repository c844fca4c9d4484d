"""An experiment grows for as long as nothing gets worse, and stops at once when something does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from app import cli
from app.errors import Conflict, Invalid, Unavailable
from app.experiments import lifecycle, ramp
from app.experiments.definitions import find
from app.experiments.ramp import Decision, Guardrail, Plan, Reading, Seen, decide, look
from app.experiments.results import Results, results_of
from app.storage import tables
from app.storage.database import open_engine
from tests.app.experiments.examples import add_users

LIKES = Guardrail("likes_per_user")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
PLAN = Plan((0.05, 0.25, 1.0), timedelta(days=1), (LIKES,))
FINE, WORSE, BETTER = (-0.1, 0.1), (-0.3, -0.1), (0.1, 0.3)


def seen(coverage: float, interval: tuple[float, float] | None = FINE, *, days: float = 1, **more: Any) -> Seen:
    reading = Reading(more.pop("guardrail", LIKES), "treatment", interval)
    return Seen(coverage, since=NOON - timedelta(days=days), now=NOON, readings=(reading,), **more)


@pytest.mark.parametrize(
    ("found", "action", "coverage"),
    [
        (seen(0.01, days=0), "grow", 0.05),
        (seen(0.01, None, days=0), "grow", 0.05),
        (seen(0.01, days=9, doubts=("too many were lost",)), "wait", 0.01),
        (seen(0.05, days=0.99), "wait", 0.05),
        (seen(0.05), "grow", 0.25),
        (seen(0.1), "grow", 0.25),
        (seen(0.25, BETTER), "grow", 1.0),
        (seen(1.0, days=0.5), "wait", 1.0),
        (seen(1.0), "done", 1.0),
        (seen(0.05, WORSE, days=0), "stop", 0.05),
        (seen(1.0, WORSE, days=0.5), "stop", 1.0),
        (seen(0.05, WORSE, guardrail=Guardrail("skip:count", "higher")), "grow", 0.25),
        (seen(0.05, BETTER, guardrail=Guardrail("skip:count", "higher")), "stop", 0.05),
        (seen(0.05, None), "wait", 0.05),
        (seen(0.05, doubts=("too many were lost",)), "wait", 0.05),
        (seen(0.05, WORSE, doubts=("too many were lost",)), "stop", 0.05),
        (seen(0.05, days=0, mismatch="the sample ratio is off"), "stop", 0.05),
    ],
)
def test_decisions(found: Seen, action: str, coverage: float) -> None:
    decision = decide(PLAN, found)
    assert (decision.action, decision.coverage) == (action, coverage), decision.reason


def test_an_interval_that_touches_zero_is_not_bad() -> None:
    assert decide(PLAN, seen(0.05, (-0.2, 0.0))).action == "grow"
    assert decide(PLAN, seen(0.05, (0.0, 0.2), guardrail=Guardrail("skip:count", "higher"))).action == "grow"


@pytest.mark.parametrize("steps", [(), (0.5, 0.1), (0.1, 0.1), (0.0, 1.0), (0.5, 1.5)])
def test_steps_that_are_none_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(Invalid):
        Plan(steps, timedelta(days=1), (LIKES,))


AT_ONCE = replace(PLAN, every=timedelta(0), window=timedelta(hours=1))


def looked(engine: Engine, plan: Plan = AT_ONCE) -> Decision:
    return look(engine, "feed", plan, recommenders=frozenset, defaults={}, impressions_days=0, actor="terminal")


def drafted(engine: Engine, **fields: Any) -> None:
    variants = [
        {"name": name, "weight": 0.5, "recommender": None, "parameters": {}, "promotions": True}
        for name in ("control", "treatment")
    ]
    definition = {
        "seed": None, "namespace": None, "coverage": 1.0, "variants": variants, "holdout": False, "data": "shared",
        "forced": {}, "route": None, "surface": "feed",
    } | fields  # fmt: skip
    with engine.begin() as db:
        lifecycle.put(db, "feed", definition, recommenders=(), actor="editor")


def exposed_yesterday(engine: Engine, users: dict[str, int], *, likes: dict[str, float]) -> None:
    """So many users of each variant, each of whom likes so many items within the hour, on the average."""
    chance, exposed_at = np.random.default_rng(0), datetime.now(UTC) - timedelta(days=1)
    with engine.begin() as db:
        db.execute(text("update experiments set started_at = now() - interval '2 days' where key = 'feed'"))
        for variant, n in users.items():
            rows = add_users(db, [f"{variant} {number}" for number in range(n)])
            exposures = [
                {"experiment": "feed", "run": 1, "user_id": user, "variant": variant, "exposed_at": exposed_at,
                 "route": "new", "surface": "feed", "request_id": f"r {user}", "worker": "w"}
                for user in rows
            ]  # fmt: skip
            db.execute(insert(tables.exposures), exposures)
            liked = [
                {"event_id": f"{row} {item}", "user_row": row, "item_row": item, "kind": "like",
                 "timestamp": exposed_at + timedelta(minutes=1), "received_at": exposed_at + timedelta(minutes=1)}
                for row, count in zip(rows.values(), chance.poisson(likes[variant], n).tolist(), strict=True)
                for item in range(count)
            ]  # fmt: skip
            db.execute(insert(tables.interactions), liked)


def state(engine: Engine) -> tuple[str, float]:
    with engine.connect() as db:
        experiment = find(db, "feed")
    return experiment.status, experiment.coverage


def test_it_starts_small_and_grows_while_no_guardrail_is_worse(engine: Engine) -> None:
    drafted(engine)
    assert looked(engine).action == "start"
    assert state(engine) == ("running", 0.05)
    nobody_yet = looked(engine)
    assert (nobody_yet.action, nobody_yet.coverage) == ("wait", 0.05)
    exposed_yesterday(engine, {"control": 500, "treatment": 500}, likes={"control": 3, "treatment": 3})
    assert looked(engine, replace(AT_ONCE, every=timedelta(days=1))).action == "wait"
    assert [(each.action, each.coverage) for each in (looked(engine) for _ in range(3))] == [
        ("grow", 0.25), ("grow", 1.0), ("done", 1.0),
    ]  # fmt: skip
    assert state(engine) == ("running", 1.0)


def test_it_stops_at_once_where_a_guardrail_is_worse_and_stays_so(engine: Engine) -> None:
    drafted(engine)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 500}, likes={"control": 3, "treatment": 2})
    stopped = looked(engine, replace(AT_ONCE, every=timedelta(days=30)))
    assert stopped.action == "stop"
    assert "likes_per_user of 'treatment'" in stopped.reason
    assert state(engine) == ("stopped", 0.05)
    ended = looked(engine)
    assert (ended.action, ended.reason) == ("ended", f"it was stopped: {stopped.reason}")
    assert state(engine) == ("stopped", 0.05)
    table = tables.audit_log
    with engine.connect() as db:
        decisions = db.execute(select(table.c.after).where(table.c.action == "experiment.ramp").order_by(table.c.id))
        log = list(decisions.scalars())
    assert [entry["decision"] for entry in log] == ["start", "stop"]
    assert log[1]["guardrails"][0]["interval"][1] < 0
    assert log[1]["reason"] == stopped.reason


def test_it_stops_where_the_sample_ratio_is_off(engine: Engine) -> None:
    drafted(engine)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 300}, likes={"control": 3, "treatment": 3})
    assert looked(engine).reason.startswith("the sample ratio is off")
    assert state(engine)[0] == "stopped"


def test_a_sample_ratio_that_chance_may_have_made_lets_it_wait(engine: Engine) -> None:
    """p is 2e-5: no result is trusted, but one of a few thousand sound ramps that look each hour comes to it."""
    drafted(engine)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 370}, likes={"control": 3, "treatment": 3})
    waits = looked(engine)
    assert waits.action == "wait"
    assert "sample ratio mismatch" in waits.reason
    assert state(engine) == ("running", 0.05)


def test_a_result_that_takes_too_long_lets_it_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drafted(engine)
    looked(engine)

    def too_long(*_: Any, **__: Any) -> Results:
        raise Unavailable("the result took longer than a minute")

    monkeypatch.setattr(ramp, "results_of", too_long)
    waits = looked(engine)
    assert (waits.action, waits.reason) == ("wait", "the result took longer than a minute")
    assert state(engine) == ("running", 0.05)


def test_a_result_that_postgres_fails_lets_it_wait(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drafted(engine)
    looked(engine)

    def cut_off(*arguments: Any, **more: Any) -> Results:
        with engine.begin() as db:
            db.execute(text("select pg_terminate_backend(pg_backend_pid())"))
        raise AssertionError("the connection is gone")

    monkeypatch.setattr(ramp, "results_of", cut_off)
    waits = looked(engine)
    assert (waits.action, state(engine)) == ("wait", ("running", 0.05))
    assert waits.reason.startswith("Postgres failed: ")


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Lets something happen between a look and what it leads to."""

    def happens(what: Callable[[], None]) -> None:
        def late(*arguments: Any, **more: Any) -> Results:
            found = results_of(*arguments, **more)
            what()
            return found

        monkeypatch.setattr(ramp, "results_of", late)

    return happens


@pytest.mark.parametrize(("likes", "does"), [(3, "grow"), (2, "stop")])
def test_another_run_is_not_judged_by_the_figures_of_the_last(
    engine: Engine, meanwhile: Callable[[Callable[[], None]], None], likes: float, does: str
) -> None:
    drafted(engine, coverage=0.1)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 500}, likes={"control": 3, "treatment": likes})

    def restarted() -> None:
        with engine.begin() as db:
            lifecycle.stop(db, "feed", actor="editor")
            lifecycle.start(db, "feed", recommenders=(), defaults={}, actor="editor")

    meanwhile(restarted)
    ended = looked(engine)
    assert (ended.action, ended.reason) == ("ended", "run 1 was stopped by hand meanwhile"), does
    assert state(engine) == ("running", 0.1)


def test_who_stops_it_or_lets_it_grow_meanwhile_has_the_last_word(
    engine: Engine, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    def by_hand(change: Callable[..., None], *arguments: Any) -> None:
        with engine.begin() as db:
            change(db, "feed", *arguments, actor="editor")

    drafted(engine)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 500}, likes={"control": 3, "treatment": 3})
    meanwhile(partial(by_hand, lifecycle.cover, 0.5))
    waits = looked(engine)
    assert (waits.action, waits.coverage) == ("wait", 0.5)
    assert state(engine) == ("running", 0.5)
    meanwhile(partial(by_hand, lifecycle.stop))
    assert looked(engine).action == "ended"
    assert state(engine) == ("stopped", 0.5)


def test_the_loop_outlives_a_postgres_that_goes_away(
    new_database: Callable[[], str], redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    here, elsewhere = open_engine(url), open_engine(make_url(url).set(database="postgres").render_as_string(False))
    drafted(here)

    def let_in(allowed: bool) -> None:
        name = make_url(url).database
        with elsewhere.begin() as db:
            db.execute(text(f'alter database "{name}" allow_connections {allowed}'))
            if not allowed:
                gone = text("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = :name")
                db.execute(gone, {"name": name})

    def stop() -> None:
        with here.begin() as db:
            lifecycle.stop(db, "feed", actor="editor")

    between = iter([partial(let_in, False), partial(let_in, True), stop])
    monkeypatch.setattr("app.cli.experiments.time", SimpleNamespace(sleep=lambda _: next(between)()))
    given = ["experiments", "ramp", "feed", "--guardrail", "like:count"]
    surroundings = {"DATABASE_URL": url, "REDIS_URL": redis_url, "SEGUE_DATA_DIR": str(tmp_path), "COLUMNS": "300"}
    try:
        done = CliRunner(env=surroundings).invoke(cli.app, given, catch_exceptions=False)
    finally:
        let_in(True)
        here.dispose()
        elsewhere.dispose()
    said = [
        line for line in done.output.splitlines() if line.partition(" ")[0].strip(":") in ("start", "wait", "ended")
    ]
    assert [line.partition(":")[0] for line in said] == ["start at 5%", "wait", "wait at 5%", "ended at 5%"]
    assert "Postgres can't be used" in said[1]
    assert done.exit_code == 0


def test_lost_exposures_let_it_wait(engine: Engine) -> None:
    drafted(engine)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 500}, likes={"control": 3, "treatment": 3})
    loss = {"experiment": "feed", "run": 1, "variant": "control", "day": datetime.now(UTC).date(), "lost": 100}
    with engine.begin() as db:
        db.execute(insert(tables.exposure_losses).values(**loss))
    assert looked(engine).action == "wait"


def test_a_step_begins_when_the_coverage_grew_and_who_looks_next_knows(engine: Engine) -> None:
    drafted(engine)
    looked(engine)
    exposed_yesterday(engine, {"control": 500, "treatment": 500}, likes={"control": 3, "treatment": 3})
    with engine.begin() as db:
        db.execute(text("update audit_log set at = at - interval '2 days'"))
    daily = replace(AT_ONCE, every=timedelta(days=1))
    assert [looked(engine, daily).action for _ in range(2)] == ["grow", "wait"]
    with engine.begin() as db:
        db.execute(text("delete from audit_log"))
    assert looked(engine, daily).action == "grow", "the run began two days ago, and that is all that is left to know"


def test_a_holdout_does_not_ramp(engine: Engine) -> None:
    drafted(engine, holdout=True)
    with pytest.raises(Conflict, match="holdout"):
        looked(engine)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--guardrail", "likes"), ("--guardrail", "like:count:worse=up"), ("--steps", "0.5,0.1"), ("--steps", "some"),
     ("--every", "soon"), ("--window", "all")],
)  # fmt: skip
def test_a_command_that_makes_no_sense_is_refused_before_anything_is_opened(option: str, value: str) -> None:
    given = ["experiments", "ramp", "x", "--once", "--guardrail", "like:count", option, value]
    with pytest.raises(Invalid, match=value):
        CliRunner().invoke(cli.app, given, catch_exceptions=False)
