"""Looking at processes that may end while one looks."""

from __future__ import annotations

from contextlib import suppress

import psutil


def is_living(process: psutil.Process) -> bool:
    """A zombie does not count, though its parent has yet to take leave of it."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def command_line(process: psutil.Process) -> list[str]:
    """The words it was started with; none of a process that has ended."""
    with suppress(psutil.NoSuchProcess):
        words: list[str] = process.cmdline()
        return words
    return []


def has_connections(process: psutil.Process) -> bool:
    """Whether it holds a socket of the internet, if only to listen."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.net_connections())
    return False
