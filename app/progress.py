"""Progress on a terminal: callbacks that draw a bar for everything that takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

console = Console(stderr=True)
"""Where people are spoken to; what a program may want to read goes to standard output."""


@contextmanager
def progress_bar() -> Iterator[Callable[[str, str, float], None]]:
    """A callback for phases that say what they are at and how far, as a share of one; each gets a bar."""
    with _bars(TextColumn("{task.percentage:>3.0f}% {task.fields[what]}")) as bars:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, what: str, fraction: float) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=1.0, what=what)
            bars.update(tasks[phase], completed=fraction, what=what)

        yield report


@contextmanager
def progress_counter() -> Iterator[Callable[[str, int, int], None]]:
    """A callback for steps that count: what, how many done, how many there are."""
    with _bars(MofNCompleteColumn()) as bars:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step)
            bars.update(tasks[step], completed=done, total=total)

        yield report


def _bars(amount: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        amount,
        TimeElapsedColumn(),
        console=console,
    )
