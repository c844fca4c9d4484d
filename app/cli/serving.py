"""`segue demo`, `serve`, `worker`, `migrate`: the service and what it runs on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.imports import print_import
from app.cli.surroundings import POSTGRES_SECONDS, opened, patiently
from app.cli.training import current_release, run_training
from app.errors import SegueError
from app.orphans import ending_with, serving_parent
from app.progress import console, progress_counter
from app.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from sqlalchemy import Engine

DEMO_DATA = Path(__file__).resolve().parents[2] / "demo" / "movietweetings-100k"

COULD_NOT_START = 3
"""Exit code, as uvicorn's own."""

Port = Annotated[int, typer.Option(min=1, max=65535, help="TCP port")]


def demo(port: Port = 8000, serve_it: Annotated[bool, typer.Option("--serve/--no-serve")] = True) -> None:
    """Everything at once: servers, the bundled data set, training, the service."""
    if serve_it:
        _refuse_taken_port("127.0.0.1", port)
    with opened() as (settings, engine):
        _import_demo(engine)
        if current_release(settings) is None:
            # Measuring takes as long again as fitting: `segue evaluate` and `segue train` do that.
            run_training(engine, settings, evaluate=False)
        if serve_it:
            threading.Thread(target=_welcome, args=(port,), daemon=True).start()
            _serve(settings, host="127.0.0.1", port=port, workers=1, worker=True)


def serve(
    host: Annotated[str, typer.Option(help="address to listen on; other than loopback needs an API key")] = "127.0.0.1",
    port: Port = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer")] = 1,
    worker: Annotated[bool, typer.Option(help="also run a worker for training jobs")] = True,
) -> None:
    """Answer over HTTP."""
    _refuse_taken_port(host, port)
    with opened(patience_seconds=POSTGRES_SECONDS) as (settings, engine):
        _refuse_open_door(settings, engine, host)
        _serve(settings, host=host, port=port, workers=workers, worker=worker)


def migrate() -> None:
    """Bring the database's tables to this version."""
    with opened():
        console.print("the tables are up to date")


def worker(burst: Annotated[bool, typer.Option(help="stop when no job is left")] = False) -> None:
    """Run training jobs as they come."""
    from app.training.queue import run_worker

    with opened(patience_seconds=POSTGRES_SECONDS) as (settings, _):
        run_worker(settings, burst=burst)


def _import_demo(engine: Engine) -> None:
    from app.importers.movietweetings import import_movietweetings

    with progress_counter() as progress:
        report = import_movietweetings(engine, DEMO_DATA, shift_to_now=True, progress=progress)
    print_import(report)


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

    def looked_up() -> bool:
        with engine.connect() as db:
            return stored.load(db, settings).is_open

    is_open = patiently(looked_up, POSTGRES_SECONDS)
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

    from app.api.connections import ConnectionLimits, PatientProtocol
    from app.cli.children import JobWorker, Workers
    from app.cli.metrics_files import metrics_folder

    parent = serving_parent()
    os.environ["SEGUE_PARENT_PID"] = str(os.getpid())
    # uvicorn sends itself the signal once more when it has drained: it must not keep us from what follows.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        stack.enter_context(ending_with(parent, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        if workers > 1:
            stack.enter_context(metrics_folder())
        if worker:
            stack.callback(JobWorker().end)
        config = uvicorn.Config(
            "app.main:app_from_environment",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            loop="uvloop",
            http=partial(PatientProtocol, limits=ConnectionLimits(settings.connections, settings.client_seconds)),  # type: ignore[arg-type]
            ws="none",
            access_log=False,
            log_level=settings.log_level,
            timeout_graceful_shutdown=settings.drain_seconds,
            server_header=False,
        )
        if workers > 1:
            Workers(config, [config.bind_socket()]).run()
        else:
            _answer_alone(uvicorn.Server(config))


def _answer_alone(server: uvicorn.Server) -> None:
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(COULD_NOT_START)
