"""Who asks a dependency that fails, and how soon it is asked again."""

from __future__ import annotations

import time
from concurrent.futures import Future

import pytest

from app.serving import breaker as module
from app.serving.breaker import Breaker
from tests.patience import until

LONG_AGO = 3600.0


def failed(*, seconds: float) -> Breaker:
    """After a failure that took so long."""
    breaker = Breaker("postgres", patience_seconds=LONG_AGO)
    breaker.failed(OSError("away"), since=time.monotonic() - seconds)
    return breaker


def test_everybody_asks_while_all_is_well() -> None:
    breaker = Breaker("postgres", patience_seconds=1.0)
    assert all(breaker.lets_through() for _ in range(10))


def test_after_silence_nobody_asks_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    # A while that no machine sleeps through.
    monkeypatch.setattr(module, "LONGEST_REST_SECONDS", LONG_AGO)
    silent = failed(seconds=LONG_AGO)
    assert not any(silent.lets_through() for _ in range(10))


def test_a_failure_that_cost_nothing_keeps_nobody_from_asking_but_one_after_the_other() -> None:
    breaker = failed(seconds=0.0)
    until(breaker.lets_through)
    assert not breaker.lets_through(), "the first has no answer yet"


def test_after_an_answer_everybody_asks() -> None:
    breaker = failed(seconds=1.0)
    breaker.answered()
    assert all(breaker.lets_through() for _ in range(10))


def test_nobody_asks_while_an_answer_is_overdue() -> None:
    breaker, owed = Breaker("postgres", patience_seconds=1.0), Future[None]()
    breaker.failed(TimeoutError(), since=time.monotonic(), overdue=owed)
    assert not breaker.lets_through()
    owed.set_exception(OSError("cut off"))
    until(breaker.lets_through)


def test_who_was_let_through_and_went_without_a_word_does_not_keep_the_others_away() -> None:
    breaker = Breaker("postgres", patience_seconds=0.05)
    breaker.failed(OSError("away"), since=time.monotonic())
    until(breaker.lets_through)
    until(breaker.lets_through)
