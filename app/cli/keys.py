"""`segue keys …`: who may ask."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.surroundings import opened
from app.progress import console

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="what the audit log calls it")],
    scope: Annotated[list[str], typer.Option(help="read, write or admin; repeatable")],
) -> None:
    """Make an API key and print it, this once."""
    from app.storage import keys as stored

    with opened() as (_, engine), engine.begin() as db:
        key = stored.create(db, actor="terminal", name=name, scopes=scope)
    Console().print(key, highlight=False, soft_wrap=True)


@keys.command("list")
def list_keys() -> None:
    """The keys that open something now."""
    from app.storage import keys as stored

    table = Table("name", "scopes")
    with opened() as (settings, engine), engine.connect() as db:
        for key in stored.load(db, settings).keys:
            table.add_row(key.name, ", ".join(sorted(key.scopes)))
    Console().print(table)


@keys.command("revoke")
def revoke_key(name: str) -> None:
    """Revoke every key of this name; workers refuse it within a second."""
    from app.storage import keys as stored

    with opened() as (_, engine), engine.begin() as db:
        revoked = stored.revoke(db, actor="terminal", name=name)
    console.print(f"{revoked} revoked")
