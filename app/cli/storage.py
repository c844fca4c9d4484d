"""`segue backup`, `restore`, `restored`, `prune`, `erasures …`: what is kept, for how long, and where else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from app.cli.surroundings import opened
from app.errors import Invalid, SegueError
from app.progress import console
from app.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.erasure import Tombstone
    from app.storage.embedded.backup import Manifest

erasures = typer.Typer(no_args_is_help=True, help="Who was erased, as hashes: to keep apart from backups.")

Erasures = Annotated[
    Path | None, typer.Option(help="what `segue erasures list` printed after the backup: those users are erased again")
]


def backup(folder: Annotated[Path, typer.Argument(help="a new folder; it appears once it is complete")]) -> None:
    """Copy the embedded Postgres and the releases, while they are in use."""
    from app.storage.embedded import EmbeddedServersError, backup, embedded_servers

    settings = _embedded_settings(
        "pg_basebackup, pg_dump or your provider's snapshots, and `segue restored` afterwards"
    )
    try:
        with embedded_servers(settings.data_dir) as servers:
            identity = _database_id(servers.database_url)
            manifest = backup.make(servers, settings.releases_dir, identity, folder.resolve())
    except EmbeddedServersError as error:
        raise SegueError(str(error)) from error
    console.print(f"{folder}: everything up to {manifest.made_at}", highlight=False, soft_wrap=True)


def restore(
    folder: Annotated[Path, typer.Argument(help="a folder that `segue backup` made")],
    replace: Annotated[bool, typer.Option("--replace", help="over data that is there, which is put aside")] = False,
    erasures: Erasures = None,
) -> None:
    """Verify a backup and make it what SEGUE_DATA_DIR holds."""
    from app.storage.embedded import EmbeddedServersError, backup, embedded_servers

    settings = _embedded_settings("your own tools, then `segue restored`")
    known = None if erasures is None else _read(erasures)
    try:
        manifest = backup.verify(folder)
        backup.refuse_in_use(settings.data_dir, replace=replace)
        replaced = _erased_in(settings.data_dir, manifest.database_id)
        known = known if replaced is None else [*(known or ()), *replaced]
        with backup.unpacked(folder, settings.data_dir) as aside:
            with embedded_servers(aside) as servers:
                erased = _begin_new_life(servers.database_url, servers.redis_url, manifest, known or [])
            put_aside = backup.put_in_place(aside, settings.data_dir)
    except EmbeddedServersError as error:
        raise SegueError(str(error)) from error
    _say_what_was_restored(settings, manifest, put_aside, None if known is None else erased)


def restored() -> None:
    """After you restored your own Postgres, before serving: nothing that Redis remembers is believed any more."""
    from app.storage.new_life import begin_new_life

    with opened() as (_, engine), engine.begin() as db:
        renumbered = begin_new_life(db, actor="terminal")
    console.print("the versions have new epochs" + (", and transactions new numbers" if renumbered else ""))


def prune() -> None:
    """Delete what is older than the settings keep (SEGUE_…_DAYS); the service does it by itself every hour."""
    from app.erasure import forget_late
    from app.retention import prune as run
    from app.storage.redis import open_sync

    with opened() as (settings, engine):
        gone = run(engine, settings)
        cache = open_sync(settings.redis_url or "", timeout_seconds=settings.redis_timeout_seconds)
        late = forget_late(engine, cache)
        cache.close()
    if gone is None:
        raise SegueError("another process is pruning now")
    for table, rows in gone.items():
        console.print(f"{table}: {rows:,} rows", highlight=False)
    if not gone:
        console.print("the settings keep everything for ever")
    if late:
        console.print(f"{late} erased users were looked for in Redis once more")


@erasures.command("list")
def list_erasures() -> None:
    """A line per erased user: the SHA-256 of the id, and when. Newer than the last backup, it is what that lacks."""
    from app.erasure import tombstones

    with opened() as (_, engine), engine.connect() as db:
        found = tombstones(db)
    for each in found:
        Console().print(f"{each.user_hash.hex()} {each.erased_at.isoformat()}", highlight=False, soft_wrap=True)


@erasures.command("apply")
def apply_erasures(file: Annotated[Path, typer.Argument(help="what `segue erasures list` printed")]) -> None:
    """Erase again the users whom a restored database brought back."""
    known = _read(file)
    with opened() as (settings, engine):
        erased = _erase_again(engine, settings, known)
    console.print(f"{erased} users erased again, {len(known)} erasures known")


def _embedded_settings(otherwise: str) -> Settings:
    settings = Settings()
    if settings.database_url:
        raise SegueError(
            f"DATABASE_URL is set: Segue backs up the Postgres that it runs itself; for yours use {otherwise}"
        )
    return settings


def _database_id(database_url: str) -> str:
    from sqlalchemy.exc import ProgrammingError

    from app.storage.database import database_id

    with _engine(database_url) as engine, engine.connect() as db:
        try:
            return str(database_id(db))
        except ProgrammingError as error:
            raise SegueError("there is nothing to back up: the database is empty") from error


def _begin_new_life(database_url: str, redis_url: str, manifest: Manifest, known: list[Tombstone]) -> int:
    """How many users were erased again."""
    from app.storage.database import migrate
    from app.storage.new_life import begin_new_life

    if _database_id(database_url) != manifest.database_id:
        raise SegueError("the backup holds another database than it says")
    migrate(database_url)
    with _engine(database_url) as engine:
        with engine.begin() as db:
            begin_new_life(db, actor="terminal")
        settings = Settings().model_copy(update={"redis_url": redis_url})
        return _erase_again(engine, settings, known) if known else 0


def _erase_again(engine: Engine, settings: Settings, known: list[Tombstone]) -> int:
    from app.erasure import erase_again
    from app.feedback.dirty_marks import ViewWriter
    from app.storage.redis import open_sync

    cache = open_sync(settings.redis_url or "", timeout_seconds=settings.redis_timeout_seconds)
    try:
        return erase_again(engine, ViewWriter(cache, ttl_seconds=settings.view_ttl_seconds), known)
    finally:
        cache.close()


def _erased_in(data_dir: Path, database_id: str) -> list[Tombstone] | None:
    """Who was erased in what is to be replaced; None unless it is a later state of the same database, and readable."""
    from sqlalchemy.exc import SQLAlchemyError

    from app.erasure import tombstones
    from app.storage.embedded import EmbeddedServersError, backup, embedded_servers

    if not backup.holds_database(data_dir):
        return None
    try:
        with embedded_servers(data_dir) as servers:
            if _database_id(servers.database_url) != database_id:
                return None
            with _engine(servers.database_url) as engine, engine.connect() as db:
                return tombstones(db)
    except (EmbeddedServersError, SegueError, SQLAlchemyError) as error:
        console.print(f"who was erased in what is replaced can't be read: {error}", highlight=False, markup=False)
        return None


def _read(file: Path) -> list[Tombstone]:
    from app.erasure import Tombstone

    found = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        user_hash, _, erased_at = line.partition(" ")
        try:
            found.append(Tombstone(bytes.fromhex(user_hash), datetime.fromisoformat(erased_at)))
        except ValueError as error:
            raise Invalid(f"{file}:{number}: no line of `segue erasures list`") from error
    return found


def _say_what_was_restored(settings: Settings, manifest: Manifest, put_aside: Path | None, erased: int | None) -> None:
    say = [f"{settings.data_dir} is as of {manifest.made_at}"]
    if put_aside is not None:
        say.append(f"what it held is in {put_aside}")
    if erased is None:
        say.append(
            "users who were erased since are back: erase them again (`segue erasures apply`, with what "
            "`segue erasures list` printed before)"
        )
    else:
        say.append(f"{erased} users who had been erased since were erased again")
    for line in say:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _engine(database_url: str) -> Iterator[Engine]:
    from app.storage.database import open_engine

    engine = open_engine(database_url, statement_timeout_seconds=600)
    try:
        yield engine
    finally:
        engine.dispose()
