"""Processes that must not outlive the one that started them: each watches its parent, and ends with it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""For what is under way; then the process ends whatever it waits for, a Postgres that hangs, say."""


def serving_parent() -> int:
    """The process of `segue serve` that this one works for; 0 where there is none."""
    return int(os.environ.get("SEGUE_PARENT_PID", "0"))


@contextmanager
def ending_with(parent: int, end: Callable[[], None]) -> Iterator[None]:
    """Within the block, `end` is called once `parent` died, and GRACE_SECONDS later this process is ended if it is
    still there. Does nothing for 0 and for this process itself."""
    left = threading.Event()
    if parent not in (0, os.getpid()):
        threading.Thread(target=_watch, args=(parent, end, left), name="parent-watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _watch(parent: int, end: Callable[[], None], left: threading.Event) -> None:
    while not left.wait(LOOK_SECONDS):
        if os.getppid() != parent:
            log.warning("the parent process is gone; stopping")
            end()
            time.sleep(GRACE_SECONDS)
            os._exit(1)
