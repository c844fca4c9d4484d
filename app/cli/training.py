"""`segue train`, `evaluate`, `releases …`: what is fitted, how good it is, which of it is served."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.surroundings import opened
from app.progress import console, progress_bar
from app.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

releases = typer.Typer(no_args_is_help=True, help="Releases: list them, serve one.")


def train(
    evaluate_it: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="measure it first")] = True,
    activate: Annotated[bool, typer.Option(help="serve it where it passes the gate")] = True,
    seed: Annotated[int, typer.Option(help="of everything random in the fits")] = 0,
) -> None:
    """Fit every recommender on what Postgres holds and write a release."""
    with opened() as (settings, engine):
        run_training(engine, settings, evaluate=evaluate_it, activate=activate, seed=seed)


def evaluate(
    seeds: Annotated[int, typer.Option(min=1, max=20, help="fits that differ in their seed, to see its spread")] = 1,
    markdown: Annotated[Path | None, typer.Option(help="also write the tables to this file")] = None,
) -> None:
    """The leaderboard: every recommender on the newest fifth of the events, which no fit has seen."""
    from app.training.job import leaderboards
    from models.evaluation.leaderboard import spread_as_markdown

    with opened() as (settings, engine), progress_bar() as progress:
        boards = leaderboards(engine, settings, seeds=seeds, progress=progress)
    tables = boards[0].as_markdown() + ("\n" + spread_as_markdown(boards) if seeds > 1 else "")
    if markdown is not None:
        markdown.write_text(f"# Leaderboard\n\n{tables}", "utf-8")
    Console().print(tables, markup=False, highlight=False, soft_wrap=True)


@releases.command("list")
def list_releases() -> None:
    """Every release, newest first; the one that is served is marked."""
    from app.training import releases as stored

    with opened() as (settings, engine):
        current, table = current_release(settings), Table("release", "made", "served since", "NDCG@10")
        for row in stored.listed(engine):
            mark = " *" if row.release_id == current else ""
            metrics = row.manifest.get("metrics", {})
            table.add_row(
                row.release_id + mark,
                f"{row.created_at:%Y-%m-%d %H:%M}",
                f"{row.activated_at:%Y-%m-%d %H:%M}" if row.activated_at else "never",
                f"{metrics['ndcg@10']:.4f}" if "ndcg@10" in metrics else "not measured",
            )
    Console().print(table)


@releases.command("activate")
def activate_release(release_id: str) -> None:
    """Serve this release; also the way back."""
    from app.training import releases as stored

    with opened() as (settings, engine):
        replaced = stored.activate(engine, settings, release_id, actor="terminal")
    console.print(f"{release_id} is served now; it replaces {replaced or 'nothing'}")


def run_training(
    engine: Engine, settings: Settings, *, evaluate: bool = True, activate: bool = True, seed: int = 0
) -> None:
    from app.training.job import train as run

    started = time.monotonic()
    with progress_bar() as progress:
        report = run(engine, settings, progress=progress, evaluate=evaluate, activate=activate, seed=seed)
    state = "served" if report.activated else f"not served: {report.gate}"
    measured = ", ".join(f"{name} {value:.4f}" for name, value in report.metrics.items())
    console.print(
        f"release {report.release_id} ({state}) from {report.interactions:,} interactions of {report.users:,} users "
        f"with {report.items:,} items in {time.monotonic() - started:.0f} s. {measured}",
        highlight=False,
    )


def current_release(settings: Settings) -> str | None:
    from app.storage.release_files import current_id

    return current_id(settings.releases_dir)
