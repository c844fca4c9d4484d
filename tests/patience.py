"""Waiting for what comes true by itself."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 180.0
"""Longer than any machine needs. Long, for a transaction of the other worker's tests may hold back what is counted."""


def until(ready: Callable[[], T | None]) -> T:
    """The first answer that is not false, empty or None."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s"
        time.sleep(0.02)
    return found
