"""After kill -9 at random moments under load the counters equal a recount. Here once each; the benchmark
`live_chaos` does it 50 times."""

import random

from benchmarks.live_chaos import VICTIMS, chaos, folder


def test_after_each_kill_checkpoint_and_log_equal_a_recount() -> None:
    seed = random.SystemRandom().randrange(10**6)
    with folder() as data_dir:
        report = chaos(data_dir, kills=len(VICTIMS), seed=seed)
    assert report.differences == [], f"seed {seed}"
    assert set(report.killed) == set(VICTIMS)
    assert report.events > 100
