"""Some seconds of what `python -m tests.steadfast` does for an hour: every kind of fault, and no broken promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.steadfast.load import Pace
from tests.steadfast.run import Bounds, Run

pytestmark = pytest.mark.xdist_group("service")

SEED = 4
PATIENT = Bounds(healed_s=300, gone_s=60, drained_s=60, longest_stop_s=1, answered_s=19)
"""Whether things heal is asked here, and not how soon: other tests run beside."""
PLAN = (
    ["stop valkey", "flush valkey"],
    ["kill worker", "kill valkey"],
    ["kill backend", "stop worker"],
    ["stop backends", "stop parent"],
    ["kill postgres", "stop postgres"],
    ["kill supervisor"],
    # Together, for what has to be started again costs most of the time.
    ["end parent", "kill parent", "kill all parents"],
)


def test_no_promise_is_broken_whatever_is_killed_or_stopped(data_dir: Path) -> None:
    said: list[str] = []
    run = Run(data_dir, seed=SEED, bounds=PATIENT, say=said.append, pace=Pace())
    assert {kind for kinds in PLAN for kind in kinds} == set(run.kinds)

    report = run.conduct(iter(map(list, PLAN)), longest_pause_s=0.3)

    assert not report.violations, "\n".join(said)
    assert len(report.faults) >= len(PLAN)
    assert min(report.answers - report.degraded, report.batches, report.changes) > 5, f"too little happened\n{report}"
    assert report.stored > report.batches
