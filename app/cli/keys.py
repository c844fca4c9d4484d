"""`segue keys …`: who may ask."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from app.cli.surroundings import opened
from app.progress import console

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, revoke.")


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

    table = Table("name", "scopes", "good for")
    with opened() as (settings, engine), engine.connect() as db:
        for key in stored.load(db, settings).keys:
            left = key.ends_at - time.monotonic()
            good_for = "always" if math.isinf(left) else f"{left / 3600:.1f} h"
            table.add_row(key.name, ", ".join(sorted(key.scopes)), good_for)
    Console().print(table)


@keys.command("rotate")
def rotate_key(
    name: Annotated[str, typer.Argument(help="as it was created")],
    grace_hours: Annotated[
        float, typer.Option(min=0, max=24 * 365, help="so long the old one stays good, for clients to change over")
    ] = 24,
) -> None:
    """Make a new key of this name and scopes and print it, this once; the old one ends after the grace."""
    from app.storage import keys as stored

    with opened() as (_, engine), engine.begin() as db:
        rotated = stored.rotate(db, actor="terminal", name=name, grace=timedelta(hours=grace_hours))
    Console().print(rotated.key, highlight=False, soft_wrap=True)
    console.print(
        f"{rotated.replaced} replaced, good until {rotated.good_until:%Y-%m-%d %H:%M:%S} UTC", highlight=False
    )


@keys.command("revoke")
def revoke_key(name: str) -> None:
    """Revoke every key of this name; workers refuse it within a second."""
    from app.storage import keys as stored

    with opened() as (_, engine), engine.begin() as db:
        revoked = stored.revoke(db, actor="terminal", name=name)
    console.print(f"{revoked} revoked")
