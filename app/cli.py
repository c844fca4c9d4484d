"""`segue`: everything that is done from a terminal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from app.errors import SegueError
from app.progress import console, progress_bar, progress_counter
from app.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.importers.report import ImportReport

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Segue, a recommendation service.")
imports = typer.Typer(no_args_is_help=True, help="Bring a data set into Postgres.")
releases = typer.Typer(no_args_is_help=True, help="Releases: list them, serve one.")
keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")
app.add_typer(imports, name="import")
app.add_typer(releases, name="releases")
app.add_typer(keys, name="keys")

DEMO_DATA = Path(__file__).resolve().parents[1] / "demo" / "movietweetings-100k"

Port = Annotated[int, typer.Option(min=1, max=65535, help="TCP port")]


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


@app.command()
def demo(port: Port = 8000, serve_it: Annotated[bool, typer.Option("--serve/--no-serve")] = True) -> None:
    """Everything at once: servers, the bundled data set, training, the service."""
    if serve_it:
        _refuse_taken_port("127.0.0.1", port)
    with opened() as (settings, engine):
        _import_demo(engine)
        if _current(settings) is None:
            # Measuring takes as long again as fitting: `segue evaluate` and `segue train` do that.
            _train(engine, settings, evaluate=False)
        if serve_it:
            threading.Thread(target=_welcome, args=(port,), daemon=True).start()
            _serve(settings, host="127.0.0.1", port=port, workers=1, worker=True)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs an API key")] = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer")] = 1,
    worker: Annotated[bool, typer.Option(help="also run a worker for training jobs")] = True,
) -> None:
    """Answer over HTTP."""
    _refuse_taken_port(host, port)
    with opened() as (settings, engine):
        _refuse_open_door(settings, engine, host)
        _serve(settings, host=host, port=port, workers=workers, worker=worker)


@app.command()
def migrate() -> None:
    """Bring the database's tables to this version."""
    with opened():
        console.print("the tables are up to date")


@app.command()
def worker(burst: Annotated[bool, typer.Option(help="stop when no job is left")] = False) -> None:
    """Run training jobs as they come."""
    from app.training.queue import run_worker

    with opened() as (settings, _):
        run_worker(settings, burst=burst)


@app.command()
def train(
    evaluate_it: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="measure it first")] = True,
    activate: Annotated[bool, typer.Option(help="serve it where it passes the gate")] = True,
    seed: Annotated[int, typer.Option(help="of everything random in the fits")] = 0,
) -> None:
    """Fit every recommender on what Postgres holds and write a release."""
    with opened() as (settings, engine):
        _train(engine, settings, evaluate=evaluate_it, activate=activate, seed=seed)


@app.command()
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


@imports.command("movielens")
def import_movielens(path: Annotated[Path, typer.Argument(help="folder or .zip: ml-100k, ml-1m, ml-latest")]) -> None:
    """MovieLens, tags included."""
    from app.importers.movielens import import_movielens

    with opened() as (_, engine), progress_counter() as progress:
        report = import_movielens(engine, path, progress=progress)
    _print_import(report)


@imports.command("movietweetings")
def import_movietweetings(
    path: Annotated[Path, typer.Argument(help="folder with ratings.dat and movies.dat, or their .gz")],
    shift_to_now: Annotated[bool, typer.Option(help="move all times so that the newest event is now")] = False,
) -> None:
    """MovieTweetings."""
    from app.importers.movietweetings import import_movietweetings

    with opened() as (_, engine), progress_counter() as progress:
        report = import_movietweetings(engine, path, shift_to_now=shift_to_now, progress=progress)
    _print_import(report)


@releases.command("list")
def list_releases() -> None:
    """Every release, newest first; the one that is served is marked."""
    from app.training import releases as stored

    with opened() as (settings, engine):
        current, table = _current(settings), Table("release", "made", "served since", "NDCG@10")
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


@contextmanager
def opened() -> Iterator[tuple[Settings, Engine]]:
    """Settings and a migrated database; starts the embedded servers where none are configured.

    Child processes find the servers in the environment.
    """
    from app.storage.database import migrate as migrate_database
    from app.storage.database import open_engine
    from app.telemetry import configure_logging

    settings = Settings()
    configure_logging(settings.log_level)
    with _servers(settings) as (database_url, redis_url):
        os.environ.update(DATABASE_URL=database_url, REDIS_URL=redis_url)
        os.environ["SEGUE_DATA_DIR"] = str(settings.data_dir.resolve())
        settings = Settings()
        settings.releases_dir.mkdir(parents=True, exist_ok=True)
        migrate_database(database_url)
        engine = open_engine(database_url, statement_timeout_seconds=600)
        try:
            yield settings, engine
        finally:
            engine.dispose()


@contextmanager
def _servers(settings: Settings) -> Iterator[tuple[str, str]]:
    """The addresses of Postgres and Redis: those configured, or the embedded ones for as long as the block lasts."""
    if settings.database_url and settings.redis_url:
        yield settings.database_url, settings.redis_url
        return
    from app.storage.embedded import EmbeddedServersError, embedded_servers

    try:
        with embedded_servers(settings.data_dir) as servers:
            yield settings.database_url or servers.database_url, settings.redis_url or servers.redis_url
    except EmbeddedServersError as error:
        raise SegueError(str(error)) from error


def _import_demo(engine: Engine) -> None:
    from app.importers.movietweetings import import_movietweetings

    with progress_counter() as progress:
        report = import_movietweetings(engine, DEMO_DATA, shift_to_now=True, progress=progress)
    _print_import(report)


def _train(engine: Engine, settings: Settings, *, evaluate: bool = True, activate: bool = True, seed: int = 0) -> None:
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


def _print_import(report: ImportReport) -> None:
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


def _current(settings: Settings) -> str | None:
    from app.storage.release_files import current_id

    return current_id(settings.releases_dir)


def _welcome(port: int) -> None:
    """Says what to try, once there is something that answers."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.1)
    at = f"http://127.0.0.1:{port}"
    console.print(
        f"""
Segue answers at {at} (console: {at}/, API: {at}/docs). Try:

  curl '{at}/recommend?user_id=newcomer&category=Drama&limit=5'
  curl '{at}/recommend?user_id=42&limit=5'
  curl -X POST {at}/events -H 'Content-Type: application/json' \\
       -d '{{"user_id": "newcomer", "item_id": "0468569", "kind": "like"}}'
""",
        highlight=False,
        markup=False,
        soft_wrap=True,  # a command that is wrapped can't be copied
    )


def _refuse_open_door(settings: Settings, engine: Engine, host: str) -> None:
    """Without a key anybody may do anything, so then only this machine may ask."""
    from app.storage import keys as stored

    with engine.connect() as db:
        is_open = stored.load(db, settings).is_open
    if is_open and not _is_loopback(host):
        raise SegueError(
            f"--host {host}: no API key is configured, so the service listens on loopback only; set "
            "SEGUE_ADMIN_KEY, or make one with `segue keys create`"
        )
    if is_open:
        console.print("no API key is configured: everybody on this machine may do everything", highlight=False)


def _refuse_taken_port(host: str, port: int) -> None:
    """Before anything is imported or trained that nobody could then ask for."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise SegueError(
            f"--host {host} --port {port}: can't listen there ({error.strerror}); choose others"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _serve(settings: Settings, *, host: str, port: int, workers: int, worker: bool) -> None:
    import uvicorn

    os.environ["SEGUE_PARENT_PID"] = str(os.getpid())
    # uvicorn sends itself the signal once more when it has drained: it must not keep us from what follows.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        if workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            # Each scrape is answered by one worker, for all of them: they count into files here.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="segue-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        if worker:
            stack.callback(_end, subprocess.Popen([sys.executable, "-m", "app.cli", "worker"]))
        uvicorn.run(
            "app.main:app_from_environment",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            loop="uvloop",
            http="httptools",
            access_log=False,
            log_level=settings.log_level,
            timeout_graceful_shutdown=settings.drain_seconds,
            server_header=False,
        )


def _end(worker: subprocess.Popen[bytes]) -> None:
    """A training under way would take minutes more, so the second signal ends it; its job says that it failed."""
    for end in (worker.terminate, worker.terminate, worker.kill):
        end()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(timeout=5)
            return


if __name__ == "__main__":
    main()
