"""What is free between things that stay goes back to the system."""

import numpy as np
import psutil
import pytest

from app import memory
from tests.patience import until

MANY = 10_000
EACH = 10_000


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.fixture
def gaps() -> list[np.ndarray]:
    """A tenth of a hundred megabytes, each piece between nine that were freed."""
    return [np.ones(EACH, np.int8) for _ in range(MANY)][::10]


needs_glibc = pytest.mark.skipif(memory._malloc_trim is None, reason="not glibc")


@needs_glibc
def test_free_pages_between_what_stays_are_given_back(gaps: list[np.ndarray]) -> None:
    before = resident()
    memory.give_back()
    assert before - resident() > MANY * EACH / 4
    assert all(piece.all() for piece in gaps)


def test_it_is_done_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GIVE_BACK_SECONDS", 0.01)
    pads: list[int] = []
    monkeypatch.setattr(memory, "_malloc_trim", pads.append)
    with memory.giving_back():
        until(lambda: len(pads) >= 3)
    assert set(pads) == {0}


def test_where_the_c_library_has_no_such_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", None)
    memory.give_back()
