"""Threads that take turns, one step at a time, in an order that a seed decides."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from app.feedback import dirty_marks, user_state
from tests.app.feedback import examples


class Stage:
    """Runs actors in threads of their own, one at a time, from one step to the next."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._paused: list[threading.Semaphore] = []
        self._went = threading.Semaphore(0)
        self._on_stage = 0
        self._mine = threading.local()
        self._failures: list[BaseException] = []

    def install(self, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
        """Every step of writing and rebuilding becomes a place to pause; the cache fails now and then."""
        for name in ("mark", "clear"):
            monkeypatch.setattr(dirty_marks, name, self._pausing(getattr(dirty_marks, name), fails=0.1))
        for name in ("load", "_install"):
            monkeypatch.setattr(user_state, name, self._pausing(getattr(user_state, name)))
        monkeypatch.setattr(examples, "planted", self._pausing(examples.planted))
        monkeypatch.setattr(engine.dialect, "do_commit", self._pausing(engine.dialect.do_commit))

    def add(self, actor: Callable[[], object]) -> None:
        go = threading.Semaphore(0)

        def run() -> None:
            self._mine.go = go
            go.acquire()
            try:
                actor()
            except BaseException as error:  # noqa: BLE001 - the test's own thread raises it again
                self._failures.append(error)
            self._on_stage -= 1
            self._went.release()

        self._on_stage += 1
        self._paused.append(go)
        threading.Thread(target=run, daemon=True).start()

    def step(self) -> bool:
        """Lets one actor go on to its next pause; one that waits for another's lock stays under way meanwhile."""
        if self._paused:
            self._paused.pop(self._chance.randrange(len(self._paused))).release()
        self._went.acquire(timeout=0.2)
        return self._on_stage > 0

    def raise_failures(self) -> None:
        for failure in self._failures:
            raise failure

    def _pausing(self, function: Callable[..., Any], *, fails: float = 0) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._pause()
            if fails and self._is_actor() and self._chance.random() < fails:
                raise dirty_marks.CacheAway("gone before")
            answer = function(*arguments, **options)
            if fails and self._is_actor() and self._chance.random() < fails:
                raise dirty_marks.CacheAway("gone after")
            self._pause()
            return answer

        return wrapped

    def _is_actor(self) -> bool:
        return hasattr(self._mine, "go")

    def _pause(self) -> None:
        if self._is_actor():
            self._paused.append(self._mine.go)
            self._went.release()
            self._mine.go.acquire()
