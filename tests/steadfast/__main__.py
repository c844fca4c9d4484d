"""`python -m tests.steadfast --minutes 60 --seed 1`: an hour of faults; exit code 1 when a promise was broken."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.steadfast import stage
from tests.steadfast.load import Pace
from tests.steadfast.run import Bounds, Run, at_random

LONGEST_PAUSE_S = 3.0


def main() -> None:
    asked = _arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its time"))  # so that nothing is left running
    with stage.data_folder(asked.folder) as data_dir:
        stage.prepare(data_dir)
        began = time.monotonic()
        bounds = Bounds(healed_s=asked.healed, gone_s=asked.gone)
        run = Run(data_dir, seed=asked.seed, bounds=bounds, say=_said_since(began), pace=Pace(asked.pause))
        plan = at_random(random.Random(asked.seed), asked.only or run.kinds, 60 * asked.minutes)
        report = run.conduct(plan, longest_pause_s=LONGEST_PAUSE_S)
    _say(str(report))
    for violation in report.violations:
        _say(report.explained(violation))
    sys.exit(1 if report.violations else 0)


def _arguments() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tests.steadfast", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--pause", type=float, default=0.1, help="longest pause of a client between calls, seconds")
    options.add_argument("--healed", type=float, default=Bounds.healed_s, help="so soon everything must serve again, s")
    options.add_argument(
        "--gone", type=float, default=Bounds.gone_s, help="so soon nothing of a dead service is left, s"
    )
    options.add_argument("--folder", type=Path, help="a new folder that keeps the data and the services' logs")
    options.add_argument("--only", nargs="*", metavar="KIND", help="kinds of fault (default: all)")
    return options


def _said_since(began: float) -> Callable[[str], None]:
    return lambda line: _say(f"[{time.monotonic() - began:7.1f}] {line}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
