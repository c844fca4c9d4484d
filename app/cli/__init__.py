"""`segue`: everything that is done from a terminal."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from app.cli import experiments, imports, keys, live, replay, serving, storage, training, what_if
from app.errors import SegueError
from app.progress import console

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Segue, a recommendation service.")
for command in (
    serving.demo,
    serving.serve,
    serving.migrate,
    serving.worker,
    training.train,
    training.evaluate,
    replay.replay,
    what_if.what_if,
    storage.backup,
    storage.restore,
    storage.restored,
    storage.prune,
):
    app.command()(command)
app.add_typer(imports.imports, name="import")
app.add_typer(training.releases, name="releases")
app.add_typer(keys.keys, name="keys")
app.add_typer(live.live, name="live")
app.add_typer(experiments.experiments, name="experiments")
app.add_typer(storage.erasures, name="erasures")


def main() -> None:
    """The entry point: domain errors become one line and exit code 1."""
    try:
        app()
    except SegueError as error:
        console.print(f"[red]error:[/] {error.detail}", highlight=False)
        sys.exit(1)
    except ValidationError as error:
        console.print(f"[red]a setting is wrong:[/] {error}", highlight=False)
        sys.exit(1)
