"""A thread that does one thing again and again, for as long as a block lasts."""

import threading
import time

from app.repeating import repeating
from tests.patience import PATIENCE_SECONDS, until


def test_it_is_done_again_and_again_until_the_block_ends() -> None:
    done: list[str] = []
    with repeating("counts", 0.01, lambda: done.append(threading.current_thread().name)):
        until(lambda: len(done) >= 3)
    at_the_end = len(done)
    time.sleep(0.1)
    assert done == ["counts"] * at_the_end


def test_not_before_the_first_pause_is_over() -> None:
    done: list[int] = []
    with repeating("counts", 3_600, lambda: done.append(1)):
        time.sleep(0.1)
    assert not done


class Slow:
    """A call that ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.let_go.wait(PATIENCE_SECONDS)
        self.ended.set()


def test_the_end_waits_for_the_call_under_way() -> None:
    slow = Slow()
    with repeating("slow", 0.01, slow):
        assert slow.begun.wait(PATIENCE_SECONDS)
        threading.Timer(0.1, slow.let_go.set).start()
    assert slow.ended.is_set()


def test_the_end_waits_no_longer_than_it_should() -> None:
    slow = Slow()
    with repeating("slow", 0.01, slow, leave_after=0.05):
        assert slow.begun.wait(PATIENCE_SECONDS)
    assert not slow.ended.is_set()
    slow.let_go.set()
