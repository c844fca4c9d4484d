"""`segue live …`: what people do now, as it is counted."""

from __future__ import annotations

import typer

from app.cli.surroundings import opened
from app.errors import SegueError
from app.progress import console

live = typer.Typer(no_args_is_help=True, help="Live signals: check them.")


@live.callback()
def group() -> None:
    """A group even while it has one command."""


@live.command("check")
def check_live() -> None:
    """Compare the stored live signals, and the events since, with a recount of all events; harmless at any time."""
    from app.live.check import check

    with opened() as (settings, engine):
        checked = check(engine, settings.feedback_weights)
    if checked.since is None:
        console.print(f"nothing is stored yet for these weights; the events are of {checked.items} items")
        return
    for line in checked.differences:
        console.print(line, highlight=False)
    if checked.differences:
        raise SegueError("the live signals are not what the events say: delete from live_checkpoint, and restart")
    console.print(
        f"equal to a recount: {checked.items} items, {checked.users} users, transactions below {checked.until}"
    )
