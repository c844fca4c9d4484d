"""Keeps requests from waiting for a dependency that does not answer."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from app import telemetry

log = logging.getLogger(__name__)

REST_PER_SECOND = 10
"""A dependency is left alone for so many times as long as its failure took: a refused connection costs next to nothing,
and is found to be mended at once; silence is expensive."""
LONGEST_REST_SECONDS = 1.0


class Answer(Protocol):
    """A future: of asyncio, or of a thread."""

    def done(self) -> bool: ...


class Breaker:
    """Says whether to ask. One per worker and dependency.

    After a failure nobody asks for a while; then one does, and the others go on without until that one has an answer.
    So of all the requests of a second at most one waits in vain.
    """

    def __init__(self, dependency: str, *, patience_seconds: float) -> None:
        """patience_seconds: who asks has an answer by then, or has said `failed`."""
        self._dependency = dependency
        self._patience_seconds = patience_seconds
        self._is_failing = False
        self._not_before = 0.0
        self._overdue: Answer | None = None

    def lets_through(self) -> bool:
        """Whether to ask. Who is let through says `answered` or `failed`, or is gone without a word."""
        if not self._is_failing:
            return True
        now = time.monotonic()
        if now < self._not_before or (self._overdue is not None and not self._overdue.done()):
            return False
        self._not_before = now + self._patience_seconds
        return True

    def answered(self) -> None:
        if self._is_failing:
            self._is_failing = False
            log.info("%s answers again", self._dependency)

    def failed(self, error: BaseException, *, since: float, overdue: Answer | None = None) -> None:
        """since: monotonic seconds, when it was asked. overdue: its answer may still come; until then nobody asks."""
        telemetry.DEPENDENCY_ERRORS.labels(self._dependency).inc()
        now = time.monotonic()
        self._not_before = now + min((now - since) * REST_PER_SECOND, LONGEST_REST_SECONDS)
        self._overdue = overdue
        if not self._is_failing:
            self._is_failing = True
            log.warning(
                "%s: %s; requests do without until it answers", self._dependency, str(error) or "no answer in time"
            )
