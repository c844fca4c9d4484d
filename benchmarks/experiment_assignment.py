"""What running experiments add to a request: assigning a user with an id of 36 characters to each of them.

    nice -n 19 python -m benchmarks.experiment_assignment

CPU time of this process, in rounds A B A B … of each number of experiments; the middle round is told, with the quickest
and the slowest. Each user is asked for once, so nothing is remembered from the request before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from uuid import UUID

import numpy as np

from app.experiments.assigning import assigned
from app.experiments.assignment import Namespace
from app.experiments.definitions import Experiment, Variant

COUNTS = (0, 1, 10, 50)
USERS = 2_000
ROUNDS = 9
HALVES = (Variant("control", 0.5), Variant("treatment", 0.5))


def experiments(n: int, *, namespace: str | None = None) -> tuple[Experiment, ...]:
    """Running on one surface, each over its share of a namespace if one is named, of which a share is left."""
    return tuple(
        Experiment(
            key=f"experiment-{number:02d}",
            run=1,
            seed=f"experiment-{number:02d}",
            namespace=None if namespace is None else Namespace(namespace, number / (n + 1), (number + 1) / (n + 1)),
            coverage=1.0,
            variants=HALVES,
            status="running",
        )
        for number in range(n)
    )


def seconds_per_request(running: Sequence[Experiment], users: Sequence[str]) -> float:
    began = time.process_time()
    for user_id in users:
        assigned(running, user_id, surface="feed", route="established")
    return (time.process_time() - began) / len(users)


def measured(name: str, make: Callable[[int], tuple[Experiment, ...]]) -> None:
    chance = np.random.default_rng(0)
    running = {n: make(n) for n in COUNTS}
    taken: dict[int, list[float]] = {n: [] for n in COUNTS}
    for _ in range(ROUNDS):
        for n in COUNTS:
            users = [str(UUID(bytes=chance.bytes(16))) for _ in range(USERS)]
            taken[n].append(seconds_per_request(running[n], users) * 1e6)
    empty = median(taken[0])
    for n in COUNTS[1:]:
        each = [(round_ - empty) / n for round_ in taken[n]]
        print(
            f"{name:24} {n:3} experiments: {median(taken[n]):7.1f} µs a request,"
            f" {median(each):5.2f} µs for each experiment ({min(each):.2f} to {max(each):.2f})"
        )


def main() -> None:
    measured("all users", experiments)
    measured("shares of one namespace", lambda n: experiments(n, namespace="feed"))


if __name__ == "__main__":
    main()
