"""What a soak makes of its samples."""

import re
from dataclasses import replace

import pytest

from benchmarks.soak import Sample, growth, verdict

SAMPLE = Sample(
    seconds=0, requests_per_second=100, refused=1, failed=0, pss_mib=200, rss_mib=240, files=90, threads=22,
    redis_mib=40, postgres_connections=11, queued=5,
)  # fmt: skip
MINUTES = 30


def samples(mib_per_hour: float, *, warm_up_mib: float = 0) -> list[Sample]:
    """One a minute; what the warm-up adds is there after a quarter of the time."""
    return [
        replace(
            SAMPLE,
            seconds=60 * minute,
            pss_mib=200 + mib_per_hour * minute / 60 - (warm_up_mib if minute < MINUTES / 4 else 0),
        )
        for minute in range(1, MINUTES + 1)
    ]


@pytest.mark.parametrize("rate", [-30, 0, 12.5, 500])
def test_growth_is_that_of_the_time_after_the_warm_up(rate: float) -> None:
    assert growth(samples(rate, warm_up_mib=150), lambda each: each.pss_mib) == pytest.approx(rate)


def failures(given: list[Sample], *, left: int = 0, most: float = 60) -> list[str]:
    return [line for line, is_well in verdict(given, left, most) if not is_well]


def test_what_stays_as_it_is_is_well() -> None:
    assert failures(samples(5)) == []


@pytest.mark.parametrize(
    ("given", "left", "named"),
    [
        (samples(90), 0, "memory of the service: \\+90.0"),
        ([replace(each, redis_mib=each.seconds) for each in samples(0)], 0, "memory of Redis"),
        ([*samples(0), replace(SAMPLE, seconds=1_860, files=110)], 0, "files: 90 after the warm-up, 110"),
        ([*samples(0), replace(SAMPLE, seconds=1_860, threads=40)], 0, "threads"),
        ([*samples(0), replace(SAMPLE, seconds=1_860, failed=1)], 0, "1 requests failed"),
        (samples(0), 3, "3 left in queues"),
        (samples(0)[:3], 0, "memory of the service: \\+nan"),
    ],
)
def test_what_grows_or_fails_is_named(given: list[Sample], left: int, named: str) -> None:
    found = failures(given, left=left)
    assert found
    assert any(re.match(named, line) for line in found), found
