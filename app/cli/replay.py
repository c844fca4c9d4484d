"""`segue replay`: a log's first part imported and trained on, the rest played against the service over HTTP."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from app.cli.imports import print_import
from app.cli.surroundings import opened
from app.cli.training import run_training
from app.errors import Conflict, Invalid, Unavailable
from app.progress import console, progress_counter
from app.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.cli.replay_plan import Importer, Plan
    from app.replay import Service
    from models.evaluation.replay import Ranks
    from models.evaluation.replay_report import Report, Run

START_SECONDS = 120
STOP_SECONDS = 20
TABLE_WIDTH = 120
"""Narrower, and the figures are torn apart."""


class Format(StrEnum):
    """Data sets that hold events with times."""

    MOVIETWEETINGS = "movietweetings"
    MOVIELENS = "movielens"
    POSTS = "posts"


def replay(  # noqa: PLR0917 - a command's options, which Typer gives by name
    path: Annotated[Path, typer.Argument(help="folder or .zip with the data set")],
    format_name: Annotated[Format, typer.Option("--format", help="of the data set")],
    share: Annotated[float, typer.Option(min=0.01, max=0.99, help="of first meetings to import and train on")] = 0.8,
    events: Annotated[int | None, typer.Option(min=1, help="replay no more than these after the cut")] = None,
    lag: Annotated[int, typer.Option(min=0, help="events that the service doesn't know yet when asked")] = 0,
    seed: Annotated[int, typer.Option(help="of the (first) training")] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="trainings, each with a seed of its own")] = 1,
    k: Annotated[int, typer.Option(min=1, max=100, help="length of the lists")] = 10,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer")] = 1,
    recipes: Annotated[bool, typer.Option(help="also ask each recommender alone, in this process")] = True,
    markdown: Annotated[Path | None, typer.Option(help="also write the tables to this file")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write every figure to this file")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="an empty folder to work in and keep")] = None,
) -> None:
    """The truest test of a live service: does it name what people really met next?

    Imports and trains on the log's first part. Then, in time order: asks for the user's list as of the event's time,
    looks whether the item of the event is in it, feeds the event, goes on. Works in a folder of its own, or in the
    empty database of DATABASE_URL and REDIS_URL, which afterwards holds the log.
    """
    from models.evaluation.replay_report import Report

    _refuse_impossible(seeds, data_dir)
    importer = _importer(format_name)
    plan = _plan(importer, path, share=share, events=events, lag=lag)
    runs: list[Run] = []
    # Ended by a signal, Python would leave without stopping what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for each in range(seed, seed + seeds):
        with _folder(data_dir) as folder:
            run, published = _run(plan, importer, path, folder, seed=each, k=k, workers=workers, recipes=recipes)
        runs.append(run)
    with progress_counter() as progress:
        baselines = plan.baselines(published, partial(progress, "baselines"))
    title = f"{format_name}: {share:.0%} of first meetings before the cut, a lag of {lag} events, workers: {workers}"
    report = Report(title, plan.counts, k, plan.cases, baselines, runs)
    _print(report)
    if markdown is not None:
        markdown.write_text(report.as_markdown(), "utf-8")
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))


def _plan(importer: Importer, path: Path, *, share: float, events: int | None, lag: int) -> Plan:
    from app.cli.replay_plan import Plan

    plan = Plan.of(importer.read_events(path), share=share, most=events, lag=lag)
    console.print(", ".join(f"{count:,} {what}" for what, count in plan.counts.items()), highlight=False)
    return plan


def _run(
    plan: Plan, importer: Importer, path: Path, folder: Path, *, seed: int, k: int, workers: int, recipes: bool
) -> tuple[Run, dict[str, float]]:
    """One import, training and replay; also when each item of the catalogue was published."""
    from app.cli.replay_plan import catalogue
    from app.replay import play
    from models.evaluation.replay_report import Run

    replayed = plan.replayed
    with opened(folder) as (settings, engine):
        _refuse_used(engine)
        with progress_counter() as progress:
            report = plan.import_earlier(engine, importer, path, progress)
        print_import(report)
        run_training(engine, settings, evaluate=False, seed=seed)
        published = catalogue(engine)
        with _serving(workers, folder / "serve.log") as service, progress_counter() as progress:
            played = play(service, replayed, k=k, feed=plan.feed, watch=partial(progress, "replay"))
        alone = _alone(engine, settings, plan, k) if recipes else {}
    run = Run(seed, played.ranks_array(), played.routes, played.recommenders, played.speed(len(replayed)), alone)
    return run, published


def _alone(engine: Engine, settings: Settings, plan: Plan, k: int) -> dict[str, Ranks]:
    from app.cli.replay_recipes import recipes_alone

    with progress_counter() as progress:
        return recipes_alone(engine, settings, plan, k=k, watch=partial(progress, "recommenders alone"))


def _importer(format_name: Format) -> Importer:
    from app.cli.replay_plan import Importer
    from app.importers import movielens, movietweetings, posts

    match format_name:
        case Format.MOVIETWEETINGS:
            return Importer(movietweetings.read_events, movietweetings.import_movietweetings)
        case Format.MOVIELENS:
            return Importer(movielens.read_events, movielens.import_movielens)
        case Format.POSTS:
            return Importer(posts.read_events, posts.import_posts)


def _refuse_impossible(seeds: int, data_dir: Path | None) -> None:
    """Every training starts from an empty database, and what is kept is one of them."""
    settings = Settings()
    if seeds > 1 and (settings.database_url or data_dir):
        given = "DATABASE_URL" if settings.database_url else "--data-dir"
        raise Invalid(f"--seeds {seeds}: each needs an empty database, so it goes without {given}")
    if data_dir is not None and data_dir.exists() and any(data_dir.iterdir()):
        raise Invalid(f"--data-dir {data_dir}: it is not empty, and a replay begins with nothing")


def _refuse_used(engine: Engine) -> None:
    from sqlalchemy import text

    with engine.connect() as db:
        used = db.execute(text("select exists (select from interactions)")).scalar_one()
    if used:
        raise Conflict(
            "DATABASE_URL names a database that has interactions: a replay would mix a data set into them, and "
            "count them; name an empty one, or unset DATABASE_URL and REDIS_URL"
        )


@contextmanager
def _folder(data_dir: Path | None) -> Iterator[Path]:
    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
        yield data_dir
        return
    with tempfile.TemporaryDirectory(prefix="segue-replay-", ignore_cleanup_errors=True) as folder:
        # The embedded Postgres must pass through it, as a user of its own where we are root; see `embedded.folders`.
        Path(folder).chmod(0o711)
        yield Path(folder)


@contextmanager
def _serving(workers: int, log: Path) -> Iterator[Service]:
    """`segue serve` on a free port, with keys that nobody else has, until the block ends."""
    from app.replay import Service

    service = Service(_free_port(), secrets.token_urlsafe(32), secrets.token_urlsafe(32))
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(service.port), "--workers", str(workers)]
    environment = os.environ | {
        "SEGUE_ADMIN_KEY": service.admin_key,
        "SEGUE_WRITE_KEY": service.write_key,
        "SEGUE_PARENT_PID": str(os.getpid()),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-worker"], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            _await_ready(service.port, process, log)
            yield service
        finally:
            _stop(process)


def _await_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        with suppress(HTTPException, OSError), closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    said = log.read_text("utf-8", "replace")[-2000:]
    raise Unavailable(f"the service is not ready after {START_SECONDS} s, or ended; it said: {said}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _print(report: Report) -> None:
    from models.evaluation.replay_report import CAVEAT

    out = Console()
    out.width = max(out.width, TABLE_WIDTH)
    for table in report.tables():
        shown = Table(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            shown.add_row(*row)
        out.print(shown)
    for remark in (*report.remarks(), CAVEAT):
        out.print(remark, highlight=False, markup=False)
