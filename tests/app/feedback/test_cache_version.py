"""A process follows the version of the cache keys forward, and knows when it has not looked for too long."""

from __future__ import annotations

import time

import pytest

from app.feedback import cache_version
from app.feedback.cache_version import SETTLE_SECONDS, TRUST_SECONDS, CacheVersion


@pytest.fixture
def known() -> CacheVersion:
    return CacheVersion("e:5", time.monotonic())


@pytest.mark.parametrize("copy", ["e:5", "e:4", "another:9", "e:", "e:six", "", None])
def test_a_copy_that_is_not_later_is_ignored(known: CacheVersion, copy: str | None) -> None:
    assert not known.seen_in_cache(copy)
    assert known.current == "e:5"


def test_a_later_copy_is_followed(known: CacheVersion) -> None:
    assert known.seen_in_cache("e:10")
    assert known.current == "e:10"


def test_a_later_look_into_postgres_decides_the_epoch(known: CacheVersion) -> None:
    known.seen_in_postgres("another:1", time.monotonic())
    assert known.current == "another:1"


def test_a_look_that_began_earlier_does_not(known: CacheVersion) -> None:
    known.seen_in_postgres("another:1", time.monotonic() - 60)
    assert known.current == "e:5"


def test_two_looks_that_overlap_leave_the_later_version(known: CacheVersion) -> None:
    now = time.monotonic()
    known.seen_in_postgres("e:7", now)
    known.seen_in_postgres("e:6", now + 0.1)
    assert known.current == "e:7"


def test_trust_ends_before_a_writer_stops_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TRUST_SECONDS < SETTLE_SECONDS
    looked_at = time.monotonic()
    known = CacheVersion("e:5", looked_at)
    for passed, trusted in ((0.0, True), (TRUST_SECONDS - 0.01, True), (TRUST_SECONDS + 0.01, False)):
        monkeypatch.setattr(cache_version.time, "monotonic", lambda: looked_at + passed)  # noqa: B023
        assert known.is_trusted is trusted
