"""What running experiments add to a warm answer, in CPU time of the thread that answers.

    DATABASE_URL=… REDIS_URL=… SEGUE_DATA_DIR=… nice -n 19 python -m benchmarks.exposure [--rounds 9] [--users 200]

On stores with a trained release and users with a past. The pipeline is asked directly, without HTTP. Each user is asked
for with 0, 1 and 5 running experiments in turn, the order going round, so that whatever else the machine does meets all
alike; a first round, in which everybody is exposed, does not count, nor what is written behind the answers, once per
user. Told are the CPU per answer of the middle round, and its ratio to none, round by round. What was exposed is
deleted again.
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
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--users", type=int, default=200)
    chosen = options.parse_args()
    asyncio.run(compare(rounds=chosen.rounds, users=chosen.users))


async def compare(*, rounds: int, users: int) -> None:
    taken: dict[str, list[float]] = {case: [] for case in CASES}
    async with open_resources(Settings(redis_timeout_seconds=20)) as resources:
        with resources.engine.connect() as db:
            asked = list(db.execute(text(_KNOWN), {"n": users}).scalars())
        for round_ in range(rounds + 1):
            for case, microseconds in (await one_round(resources, asked)).items():
                if round_:
                    taken[case].append(microseconds)
        with resources.engine.begin() as db:
            db.execute(text("DELETE FROM exposures WHERE experiment LIKE 'benchmark-%'"))
    for case, each in taken.items():
        ratios = [one / none for one, none in zip(each, taken["none"], strict=True)]
        spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{case:16} {median(each):6.0f} µs of CPU an answer; of none: {spread}")


async def one_round(resources: Resources, users: Sequence[str]) -> dict[str, float]:
    """Microseconds per answer, by case."""
    cases, inventories = list(CASES), resources.inventories
    spent = dict.fromkeys(cases, 0.0)
    for number, user in enumerate(users):
        for case in cases[number % len(cases) :] + cases[: number % len(cases)]:
            inventories.current = replace(inventories.current, experiments=CASES[case])
            began = time.thread_time()
            await resources.pipeline.recommend(Ask(user))
            spent[case] += time.thread_time() - began
    return {case: seconds / len(users) * 1e6 for case, seconds in spent.items()}


if __name__ == "__main__":
    main()
