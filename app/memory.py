"""Memory that is free goes back to the system."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GIVE_BACK_SECONDS = 60.0

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc; other C libraries give back by themselves, or never."""


def give_back() -> None:
    """All whole pages that hold nothing. glibc keeps them where anything behind them stays, for as long as that does:
    what is kept of users comes and goes between things that stay, and leaves more of them with every hour."""
    if _malloc_trim is not None:
        _malloc_trim(0)


@contextmanager
def giving_back() -> Iterator[None]:
    """Within the block, every GIVE_BACK_SECONDS."""
    is_over = threading.Event()

    def keep_on() -> None:
        while not is_over.wait(GIVE_BACK_SECONDS):
            give_back()

    thread = threading.Thread(target=keep_on, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
