"""What is done again and again, beside everything else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(
    name: str, seconds: float, do: Callable[[], object], *, leave_after: float | None = None
) -> Iterator[None]:
    """Within the block `do` is called every so many seconds, in a thread of its own, the first time after as many.

    do: must not raise, or it is called no more
    leave_after: seconds that the end of the block waits for a call under way; None: for as long as it takes
    """
    is_over = threading.Event()

    def keep_on() -> None:
        while not is_over.wait(seconds):
            do()

    thread = threading.Thread(target=keep_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(leave_after)
