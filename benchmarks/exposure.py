"""What running experiments add to a warm answer: CPU of the whole process, with what is written behind the answer.

    DATABASE_URL=… REDIS_URL=… SEGUE_DATA_DIR=… nice -n 19 python -m benchmarks.exposure [--rounds 7] [--users 200]

On stores with a trained release and users with a past. The pipeline is asked directly, without HTTP. Rounds of 0, 1 and
5 running experiments take turns, after one of each that does not count, in which every user is exposed. Told are the
CPU per answer of the middle round, and its ratio to none, round by round. What it exposed is deleted again.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from sqlalchemy import text

from app.experiments.definitions import Experiment, Variant
from app.resources import Resources, open_resources
from app.serving.pipeline import Ask
from app.settings import Settings

HALVES = (Variant("control", 0.5), Variant("treatment", 0.5))
_KNOWN = """
    SELECT user_id FROM users JOIN interactions ON users.row = user_row
    GROUP BY 1 HAVING count(DISTINCT item_row) >= 20 ORDER BY 1 LIMIT :n
"""


def running(n: int, route: str | None = None) -> tuple[Experiment, ...]:
    """Experiments over everybody, independent of each other."""
    keys = [f"benchmark-{route}-{number}" for number in range(n)]
    return tuple(Experiment(key, 1, key, None, 1.0, HALVES, route=route, status="running") for key in keys)


CASES = {"none": running(0), "one": running(1), "five": running(5), "five of a route": running(5, "established")}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--users", type=int, default=200)
    chosen = options.parse_args()
    asyncio.run(compare(rounds=chosen.rounds, users=chosen.users))


async def compare(*, rounds: int, users: int) -> None:
    taken: dict[str, list[float]] = {case: [] for case in CASES}
    async with open_resources(Settings()) as resources:
        with resources.engine.connect() as db:
            asked = list(db.execute(text(_KNOWN), {"n": users}).scalars())
        for round_ in range(rounds + 1):
            for case, experiments in CASES.items():
                inventories = resources.inventories
                inventories.current = replace(inventories.current, experiments=experiments)
                microseconds = await cpu_of_an_answer(resources, asked)
                if round_:
                    taken[case].append(microseconds)
        with resources.engine.begin() as db:
            db.execute(text("DELETE FROM exposures WHERE experiment LIKE 'benchmark-%'"))
    for case, each in taken.items():
        ratios = [one / none for one, none in zip(each, taken["none"], strict=True)]
        spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{case:16} {median(each):6.0f} µs of CPU an answer; of none: {spread}")


async def cpu_of_an_answer(resources: Resources, users: Sequence[str]) -> float:
    """Microseconds, until everything is written."""
    began = time.process_time()
    for user in users:
        await resources.pipeline.recommend(Ask(user))
    while resources.impressions.queued or resources.exposures.queued or resources.pages.unwritten:
        await asyncio.sleep(0.01)
    return (time.process_time() - began) / len(users) * 1e6


if __name__ == "__main__":
    main()
