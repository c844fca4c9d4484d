"""`segue import …`: a data set into Postgres."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.surroundings import opened
from app.progress import console, progress_counter

if TYPE_CHECKING:
    from app.importers.report import ImportReport

imports = typer.Typer(no_args_is_help=True, help="Bring a data set into Postgres.")


@imports.command("movielens")
def import_movielens(path: Annotated[Path, typer.Argument(help="folder or .zip: ml-100k, ml-1m, ml-latest")]) -> None:
    """MovieLens, tags included."""
    from app.importers.movielens import import_movielens

    with opened() as (_, engine), progress_counter() as progress:
        report = import_movielens(engine, path, progress=progress)
    print_import(report)


@imports.command("movietweetings")
def import_movietweetings(
    path: Annotated[Path, typer.Argument(help="folder with ratings.dat and movies.dat, or their .gz")],
    shift_to_now: Annotated[bool, typer.Option(help="move all times so that the newest event is now")] = False,
) -> None:
    """MovieTweetings."""
    from app.importers.movietweetings import import_movietweetings

    with opened() as (_, engine), progress_counter() as progress:
        report = import_movietweetings(engine, path, shift_to_now=shift_to_now, progress=progress)
    print_import(report)


@imports.command("posts")
def import_posts(
    path: Annotated[Path, typer.Argument(help="folder or .zip with users_interactions.csv and shared_articles.csv")],
    shift_to_now: Annotated[bool, typer.Option(help="move all times so that the newest event is now")] = False,
) -> None:
    """Posts and what people did with them, in the layout of CI&T Deskdrop."""
    from app.importers.posts import import_posts

    with opened() as (_, engine), progress_counter() as progress:
        report = import_posts(engine, path, shift_to_now=shift_to_now, progress=progress)
    print_import(report)


@imports.command("listens")
def import_listens(
    path: Annotated[Path, typer.Argument(help="table, .csv or .parquet: user, session, track, artist, time, fraction")],
    shift_to_now: Annotated[bool, typer.Option(help="move all times so that the newest listen is now")] = False,
) -> None:
    """What was listened to, when, and how much of it."""
    from app.importers.listens import import_listens

    with opened() as (_, engine), progress_counter() as progress:
        report = import_listens(engine, path, shift_to_now=shift_to_now, progress=progress)
    print_import(report)


@imports.command("sessions")
def import_sessions(
    path: Annotated[Path, typer.Argument(help="table, .csv or .parquet: session_id, item_id, in order")],
    train_only: Annotated[bool, typer.Option(help="leave out the sessions whose is_test is not 0")] = False,
) -> None:
    """Listening sessions of ids alone, each of a user of its own; times are made up, a second apart."""
    from app.importers.sessions import import_sessions

    with opened() as (_, engine), progress_counter() as progress:
        report = import_sessions(engine, path, train_only=train_only, progress=progress)
    print_import(report)


def print_import(report: ImportReport) -> None:
    for row in report.bad[:10]:
        console.print(f"not imported: {row}", highlight=False, markup=False)
    if report.nothing_to_do:
        console.print(f"{report.format}: imported already, nothing to do", highlight=False)
        return
    for file in report.files:
        counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(file.counts.items()))
        bad = file.bad_by_reason.total()
        console.print(f"{file.file}: {counts or 'nothing'}{f', {bad:,} bad' if bad else ''}", highlight=False)
    console.print(f"{report.seconds:.1f} s, {report.rows_per_second:,.0f} lines/s", highlight=False)
