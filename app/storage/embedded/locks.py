"""Advisory file locks: the kernel drops them when the last process that holds them dies, however it dies.

`flock` rather than `lockf`: its locks belong to the open file, so a child process can inherit one and keep it.
They are dropped by closing the file, never by unlocking it, which would take the lock from those who inherited it.
"""

import fcntl
import os
import time
from pathlib import Path

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX

_POLL_S = 0.02


def open_lock(path: Path) -> int:
    """Opens (and creates) a lock file and returns its descriptor, which programs started later don't inherit."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(descriptor: int, kind: int) -> bool:
    """Whether the lock of this kind (SHARED or EXCLUSIVE) could be taken at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int, kind: int, timeout_s: float) -> bool:
    """Whether the lock of this kind could be taken within `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not try_lock(descriptor, kind):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
