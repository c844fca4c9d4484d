"""Memory that is free goes back to the system."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager

from app.repeating import repeating

GIVE_BACK_SECONDS = 60.0

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc; other C libraries give back by themselves, or never."""


def give_back() -> None:
    """All whole pages that hold nothing. glibc keeps them where anything behind them stays, for as long as that does:
    what is kept of users comes and goes between things that stay, and leaves more of them with every hour."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def giving_back() -> AbstractContextManager[None]:
    """Within the block, every GIVE_BACK_SECONDS."""
    return repeating("memory", GIVE_BACK_SECONDS, give_back)
