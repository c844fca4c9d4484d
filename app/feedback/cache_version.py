"""The version of the cache keys as one process knows it, and for how long that can be relied on.

A writer that gives the keys a new version acknowledges nothing for SETTLE_SECONDS. A reader believes the cache only
while its process has looked at the version in Postgres within TRUST_SECONDS. Trust ends before the writer's wait does,
so whoever was stopped, starved or cut off notices by itself (docs/decisions/0013).
"""

from __future__ import annotations

import threading
import time

SETTLE_SECONDS = 1.5
TRUST_SECONDS = 1.2


class CacheVersion:
    """One per process, safe for threads. Versions are `epoch:seq` (see catalog.versions)."""

    def __init__(self, version: str, looked_at: float) -> None:
        """looked_at: monotonic seconds, taken before Postgres was asked."""
        self._lock = threading.Lock()
        self._current = version
        self._looked_at = looked_at

    @property
    def current(self) -> str:
        """The prefix of the keys."""
        return self._current

    @property
    def is_trusted(self) -> bool:
        """Whether Postgres was asked lately. To be looked at before the cache is read."""
        return time.monotonic() - self._looked_at < TRUST_SECONDS

    def seen_in_postgres(self, version: str, looked_at: float) -> None:
        """Notes what Postgres answered. looked_at: monotonic seconds, taken before it was asked."""
        with self._lock:
            is_later = looked_at > self._looked_at
            if is_after(version, self._current) or (is_later and not is_after(self._current, version)):
                self._current = version
            self._looked_at = max(self._looked_at, looked_at)

    def seen_in_cache(self, version: str | None) -> bool:
        """Notes the copy in the cache, which others may have renewed; whether the keys have another name now.

        It may as well be older than what this process knows: then nothing changes.
        """
        with self._lock:
            if version is None or not is_after(version, self._current):
                return False
            self._current = version
            return True


def is_after(version: str, other: str) -> bool:
    """Whether it is a later version of the same epoch."""
    epoch, _, seq = version.rpartition(":")
    other_epoch, _, other_seq = other.rpartition(":")
    return epoch == other_epoch and seq.isdecimal() and other_seq.isdecimal() and int(seq) > int(other_seq)
