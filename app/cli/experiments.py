"""`segue experiments …`: list them, start and stop one, let one grow by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.surroundings import opened
from app.errors import Invalid
from app.progress import console
from app.settings import Settings

if TYPE_CHECKING:
    from datetime import timedelta

    from sqlalchemy import Engine

    from app.experiments.ramp import Decision, Guardrail, Plan

experiments = typer.Typer(no_args_is_help=True, help="Experiments: list, start, stop, ramp.")

STOPPED = 3
"""Exit code of a ramp that has stopped its experiment."""
Key = Annotated[str, typer.Argument(help="of the experiment")]


@experiments.command("list")
def list_experiments() -> None:
    """The latest run of each."""
    from sqlalchemy import select

    from app.experiments.definitions import find
    from app.storage.tables import experiments as stored

    table = Table("key", "run", "status", "coverage", "variants", "since")
    with opened() as (_, engine), engine.connect() as db:
        for key in db.execute(select(stored.c.key).distinct().order_by(stored.c.key)).scalars():
            found = find(db, key)
            since = found.stopped_at or found.started_at
            table.add_row(
                key,
                str(found.run),
                found.status + (" (holdout)" if found.holdout else ""),
                f"{found.coverage:g}",
                ", ".join(f"{variant.name} {variant.weight:g}" for variant in found.variants),
                f"{since:%Y-%m-%d %H:%M}" if since else "",
            )
    Console().print(table)


@experiments.command("start")
def start_experiment(key: Key) -> None:
    """Run its draft, or run it again with a fresh seed where it was stopped."""
    from app.experiments import lifecycle
    from app.experiments.definitions import find, running
    from app.serving import routing

    with opened() as (settings, engine), _announced(settings, engine), engine.begin() as db:
        lifecycle.start(db, key, recommenders=_served(settings), defaults=routing.defaults(), actor="terminal")
        started = find(db, key)
        warnings = lifecycle.warnings(started, running(db))
    console.print(f"run {started.run} of {key} covers {started.coverage:.0%} of its users", highlight=False)
    for warning in warnings:
        console.print(f"[yellow]note:[/] {warning}", highlight=False)


@experiments.command("stop")
def stop_experiment(key: Key) -> None:
    """End its run: from the next request on, everybody is served as without it."""
    from app.experiments import lifecycle

    with opened() as (settings, engine), _announced(settings, engine), engine.begin() as db:
        lifecycle.stop(db, key, actor="terminal")
    console.print(f"{key} is stopped", highlight=False)


@experiments.command("ramp")
def ramp_experiment(
    key: Key,
    *,
    guardrail: Annotated[
        list[str], typer.Option(help="METRIC or METRIC:worse=lower|higher: must not get worse; repeatable")
    ],
    steps: Annotated[str, typer.Option(help="coverages, the last one for good")] = "0.05,0.25,1",
    every: Annotated[str, typer.Option(help="how long a step lasts at least: 12h, 1d")] = "1d",
    window: Annotated[str, typer.Option(help="how long each user is watched after the first exposure")] = "1d",
    check_every: Annotated[str, typer.Option(help="how often the guardrails are looked at: 1h")] = "1h",
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="of each guardrail's interval")] = 0.05,
    once: Annotated[bool, typer.Option("--once", help="decide once and end, for cron")] = False,
) -> None:
    """Let it cover more users step by step; stop it at once where a guardrail gets worse or the sample ratio is off.

    Everything is remembered in the database: end it, start it again, on another machine too.
    """
    from app.experiments.ramp import Plan

    plan = Plan(
        steps=_coverages(steps),
        every=_duration("every", every),
        guardrails=tuple(map(_guardrail, guardrail)),
        window=_duration("window", window),
        alpha=alpha,
    )
    pause = _duration("check-every", check_every).total_seconds()
    with opened() as (settings, engine):
        while True:
            decision = _look(settings, engine, key, plan)
            if once or (decision is not None and decision.action in ("stop", "done", "ended")):
                break
            time.sleep(pause)
    if decision is None:
        raise typer.Exit(1)
    if decision.action == "stop":
        raise typer.Exit(STOPPED)


def _look(settings: Settings, engine: Engine, key: str, plan: Plan) -> Decision | None:
    """Looks once, and says what was decided; None where Postgres is away."""
    from app.experiments.ramp import look
    from app.serving import routing
    from app.storage.database import POSTGRES_ERRORS, cause_of

    try:
        with _announced(settings, engine):
            decision = look(
                engine,
                key,
                plan,
                recommenders=lambda: _served(settings),
                defaults=routing.defaults(),
                impressions_days=settings.impressions_days,
                actor="terminal",
            )
    except POSTGRES_ERRORS as error:
        console.print(f"wait: Postgres can't be used: {cause_of(error)}", highlight=False, markup=False)
        return None
    said = f"{decision.action} at {decision.coverage:.0%}: {decision.reason}"
    console.print(said, highlight=False, markup=False)
    return decision


def _served(settings: Settings) -> frozenset[str]:
    """The recommenders of the current release, by its manifest: the models themselves take seconds and gigabytes."""
    from app.storage.release_files import current_id
    from models import artifacts

    current = current_id(settings.releases_dir)
    if current is None:
        return frozenset()
    return frozenset(artifacts.read_manifest(settings.releases_dir / current)["recommenders"])


@contextmanager
def _announced(settings: Settings, engine: Engine) -> Iterator[None]:
    """Tells the workers of what was changed in the block, before their next request; without Redis they look
    themselves, each second."""
    from redis.exceptions import RedisError

    from app.catalog import versions
    from app.storage.database import POSTGRES_ERRORS, cause_of
    from app.storage.redis import open_sync, publish_versions

    yield
    try:
        with engine.connect() as db:
            now = versions.read(db)
    except POSTGRES_ERRORS as error:
        # What was done in the block is done: whoever hears of an error here would do it again.
        console.print(
            f"[yellow]note:[/] Postgres: {cause_of(error)}; the workers will look themselves", highlight=False
        )
        return
    cache = open_sync(str(settings.redis_url), timeout_seconds=settings.redis_timeout_seconds)
    try:
        publish_versions(cache, now)
    except (RedisError, OSError) as error:
        console.print(f"[yellow]note:[/] Redis: {error}; the workers will know in a second", highlight=False)
    finally:
        cache.close()


def _coverages(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(step) for step in text.split(","))
    except ValueError:
        raise Invalid.field(("steps",), f"{text!r} is no list of numbers like 0.05,0.25,1") from None


def _duration(option: str, text: str) -> timedelta:
    from app.experiments.metrics import window_of

    found = window_of(text)
    if found is None:
        raise Invalid.field((option,), f"{text!r} is no time like 12h or 1d")
    return found


def _guardrail(text: str) -> Guardrail:
    from app.experiments.metrics import metric_of
    from app.experiments.ramp import Guardrail

    name, _, worse = text.partition(":worse=")
    if worse not in ("", "lower", "higher"):
        raise Invalid.field(("guardrail",), f"{text!r}: worse is `lower` or `higher`, not {worse!r}")
    return Guardrail(metric_of(name).name, "higher" if worse == "higher" else "lower")
