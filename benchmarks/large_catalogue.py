"""What an answer from a million items costs, and how many of the best it has.

    python -m benchmarks.large_catalogue [--items 1000000] [--queries 500] [--prior 0]

Factors are drawn, with a fixed seed, as a factorisation leaves them: in groups of unequal size, lengths skewed as
popularity is; a user met twenty items of three groups, and is folded in from them. Searched is by
`AlsHybrid.recommend`, with what the user met excluded, and with filters; compared with the scores of all items. With
`--prior` a popularity of that standard deviation is added to each score, for the lists a harder case: taste moves
scores by some thousandths. CPU time of one core, beside a bare FastAPI application that answers `GET /hello` in this
process without a server.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.blend import answer, hello, microseconds
from models.contracts import History, Mask, Query, Scores
from models.fit_blend import unlearned
from models.live.changes import Changes
from models.live.state import LiveState
from models.ranking.features import SHARES, Surprise
from models.retrieval.als_hybrid import REGULARIZATION, AlsHybrid, Confidence
from models.retrieval.content_map import ContentMap
from models.retrieval.dense import best
from models.retrieval.item_rows import ItemRows
from models.retrieval.live_counts import ExpectedCounts, LiveCounts
from models.two_stage import Blend

FACTORS, GROUPS = 64, 3_000
HISTORY = 20
NOW = 1_700_000_000.0


def factors(n: int, rng: np.random.Generator) -> tuple[Scores, NDArray[np.int64]]:
    """float32[n, 64], and each item's group."""
    centres = rng.normal(size=(GROUPS, FACTORS))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    sizes = 1 / np.arange(1, GROUPS + 1) ** 0.8
    groups = rng.choice(GROUPS, n, p=sizes / sizes.sum())
    rows = centres.astype(np.float32)[groups]
    rows += rng.normal(size=rows.shape).astype(np.float32) * np.float32(0.6 / np.sqrt(FACTORS))
    rows *= rng.lognormal(-2, 0.6, n).astype(np.float32)[:, None]
    return rows, groups


def recommender(rows: Scores, prior: float) -> AlsHybrid:
    popularity = np.random.default_rng(1).normal(0, prior, len(rows)).astype(np.float32)
    learned = rows.astype(np.float64)
    fitted = AlsHybrid(
        vectors=ItemRows.of(rows), prior=popularity,
        gramian=learned.T @ learned + REGULARIZATION * np.eye(FACTORS),
        content_map=ContentMap(np.zeros((1, FACTORS), np.float32), np.zeros((0, 0), np.float32), 1.0),
        confidence=Confidence(graded=True), content_weight=0.0, chosen={},
    )  # fmt: skip
    return fitted.listed(seed=0)


def users(groups: NDArray[np.int64], count: int, limit: int, rng: np.random.Generator) -> list[Query]:
    """Each met items of three groups, the larger the likelier."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(GROUPS + 1))
    queries = []
    for _ in range(count):
        leanings = groups[rng.integers(len(groups), size=3)][rng.choice(3, HISTORY, p=(0.5, 0.3, 0.2))]
        met = order[
            (starts[leanings] + rng.random(HISTORY) * (starts[leanings + 1] - starts[leanings])).astype(np.int64)
        ]
        positions = np.unique(met).astype(np.int32)
        n = len(positions)
        history = History(
            positions,
            np.ones(n, np.float32),
            np.ones(n, np.int8),
            np.linspace(NOW - 3_600 * n, NOW, n, dtype=np.float64),
        )
        queries.append(Query(limit=limit, at=NOW, history=history, excluded=positions))
    return queries


def report(als: AlsHybrid, queries: list[Query], eligible: Mask | None, name: str) -> None:
    asked = [replace(query, eligible=eligible) for query in queries]
    greet, answers, hellos, search, scan = hello(), [], [], 0.0, 0.0
    for query in asked:
        started = time.process_time()
        answers.append(als.recommend(query).positions)
        search += time.process_time() - started
        hellos.append(microseconds(greet, 5))
    ten, fifty = [], []
    for query, found in zip(asked, answers, strict=True):
        started = time.process_time()
        true = best(als.scores(query), query).positions
        scan += time.process_time() - started
        ten.append(np.isin(true[:10], found[:10]).mean())
        fifty.append(np.isin(true, found).mean())
    micros, yardstick = search / len(asked) * 1e6, float(np.median(hellos))
    print(
        f"{name:24} {micros:8.0f} µs = {micros / yardstick:5.1f} × hello ({yardstick:.0f} µs, no server); all scored "
        f"{scan / len(asked) * 1e6:8.0f} µs; recall of the best 10 {np.mean(ten):.4f}, 50 {np.mean(fifty):.4f}"
    )


def report_blend(als: AlsHybrid, queries: list[Query], rng: np.random.Generator) -> None:
    """Live counts, co-visits and the factors, weighed as untaught: what an answer with ten reasons costs."""
    n, events = als.n_items, 300_000
    items, visitors = (rng.zipf(1.3, events) % n).astype(np.int32), rng.integers(0, 50_000, events).astype(np.int32)
    times = np.sort(NOW - rng.exponential(20 * 86_400, events))
    live = LiveState(n_items=n)
    live.fold(Changes(items, np.ones(events), times, visitors, items, times))
    expected = np.full(n, 0.1, np.float32)
    nothing = LiveCounts(np.zeros((len(SHARES), n), np.float32), ExpectedCounts(np.zeros(2, np.float32)), expected, 2)
    usual = Surprise(np.zeros(n, np.float32), np.full(n, 30, np.float32))
    blend = Blend(nothing, {als.name: als}, {als.name: usual}, unlearned(1), {})
    asked = [replace(query, live=live, eligible=np.ones(n, np.bool_)) for query in queries]
    answer(blend, asked[0])
    greet = hello()
    for name in ("blend, users not asked of late", "blend, users asked before"):
        cost = sum(microseconds(partial(answer, blend, query)) for query in asked[1:]) / (len(asked) - 1)
        yardstick = microseconds(greet, 500)
        print(f"{name:30} {cost:8.0f} µs = {cost / yardstick:5.1f} × hello ({yardstick:.0f} µs, no server)")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--items", type=int, default=1_000_000)
    options.add_argument("--queries", type=int, default=500)
    options.add_argument("--limit", type=int, default=50)
    options.add_argument("--prior", type=float, default=0)
    asked = options.parse_args()
    rng = np.random.default_rng(0)
    with threadpool_limits(1, "blas"):
        rows, groups = factors(asked.items, rng)
        started = time.process_time()
        als = recommender(rows, asked.prior)
        print(f"{asked.items:,} items × {rows.shape[1]}; listed in {time.process_time() - started:.1f} s of CPU")
        queries = users(groups, asked.queries, asked.limit, rng)
        report(als, queries, None, "everything")
        report_blend(als, queries, rng)
        for share in (0.3, 0.01):
            report(als, queries, rng.random(asked.items) < share, f"{share:.0%} pass the filters")


if __name__ == "__main__":
    main()
