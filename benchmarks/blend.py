"""What the blend costs per question, in CPU time of one core, without HTTP and stores.

    python -m benchmarks.blend [--data DIR] [--queries 600] [--limit 50] [--recall]

Fits a release on the bundled demo data once, which takes minutes, and keeps it in DIR. Then different users' questions
are asked, each once, ten of each answer's items are given reasons; beside it a bare FastAPI application answers
`GET /hello` in this process, without a server, as a yardstick of how busy the machine is. Rounds alternate.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from app.feedback.signals import KINDS, signs_of, weights_of
from app.live.snapshot import PositionedSignals
from app.settings import Settings
from models import artifacts
from models.contracts import History, Query
from models.data.dataset import Dataset, Interactions, ItemTable
from models.live.state import DayLedger, LiveState
from models.live.stream import live_state_of
from models.ranking.features import steps_of
from models.retrieval.dense import DenseRecommender
from models.training import fit_recipes
from models.two_stage import Blend, _highest

DEMO = Path(__file__).resolve().parents[1] / "demo" / "movietweetings-100k"
SHOWN = 10
FEWEST_LIKED = 5
LONGEST_HISTORY = 200
ROUNDS = 5


def demo_data() -> Dataset:
    """The bundled ratings as the service would hand them to a training."""
    films = [line.split("::") for line in _lines("movies.dat.gz")]
    ratings = sorted((line.split("::") for line in _lines("ratings.dat.gz")), key=lambda rating: int(rating[3]))
    positions, users = {film[0]: position for position, film in enumerate(films)}, dict[str, int]()
    values = np.array([float(rating[2]) / 2 for rating in ratings])
    kinds = np.full(len(ratings), KINDS.index("rating"), np.int16)
    interactions = Interactions(
        np.array([users.setdefault(rating[0], len(users)) for rating in ratings], np.int32),
        np.array([positions[rating[1]] for rating in ratings], np.int32),
        weights_of(KINDS, kinds, values, Settings().feedback_weights),
        signs_of(KINDS, kinds, values),
        values.astype(np.float32),
        np.array([float(rating[3]) for rating in ratings]),
    )
    n = len(films)
    genres = [tuple(film[2].split("|")) for film in films]
    titles = [film[1] for film in films]
    items = ItemTable(
        genres, [()] * n, titles, [None] * n, ["film"] * n, np.full(n, np.nan), np.empty((n, 0), np.float32)
    )
    return Dataset(interactions, items, len(users))


def _lines(name: str) -> Iterable[str]:
    with gzip.open(DEMO / name, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def fitted(dataset: Dataset, folder: Path) -> artifacts.LoadedRelease:
    """The release in the folder; fitted first where there is none."""
    if not folder.exists():
        print("fitting, which takes minutes")
        artifacts.save(
            folder,
            fit_recipes(dataset, names=["blend"]),
            database_id="benchmark",
            row_of_position=np.arange(dataset.n_items),
            data_window=(float(dataset.interactions.timestamps[0]), dataset.ends_at),
        )
    return artifacts.load(folder)


def questions(dataset: Dataset, signals: PositionedSignals, count: int, limit: int) -> list[Query]:
    """Of users who liked at least five items, drawn at random, a hundredth of a second apart."""
    histories = [history for history in dataset.histories() if (history.signs > 0).sum() >= FEWEST_LIKED]
    chosen = np.random.default_rng(0).permutation(len(histories))[:count]
    return [
        Query(
            limit=limit,
            at=dataset.ends_at + 60 + place / 100,
            history=_own(histories[index].take(slice(-LONGEST_HISTORY, None))),
            eligible=np.ones(dataset.n_items, np.bool_),
            excluded=histories[index].positions,
            live=signals,
        )
        for place, index in enumerate(chosen.tolist())
    ]


def _own(history: History) -> History:
    """With arrays of its own, as they come out of a cache."""
    return history.take(np.arange(len(history)))


def answer(blend: Blend, query: Query) -> None:
    blend.reasons(query, blend.recommend(query).positions[:SHOWN])


def microseconds(work: Callable[[], object], repetitions: int = 1) -> float:
    """CPU time of this process."""
    started = time.process_time()
    for _ in range(repetitions):
        work()
    return (time.process_time() - started) / repetitions * 1e6


def hello() -> Callable[[], object]:
    """Runs one `GET /hello` through a bare application, with neither server nor socket."""
    app = FastAPI()

    @app.get("/hello")
    async def _() -> dict[str, str]:
        return {"hello": "world"}

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/hello", "raw_path": b"/hello", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "headers": [(b"host", b"localhost"), (b"accept", b"*/*")],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        return None

    def once() -> None:
        steps: Awaitable[None] = app(dict(scope), receive, send)
        iterator = steps.__await__()
        try:
            while True:
                next(iterator)
        except StopIteration:
            return

    return once


class _Writer:
    """Folds in one event at a time: a newcomer turns to an item that somebody chose of late."""

    def __init__(self, dataset: Dataset, state: LiveState) -> None:
        self._state, self._ledger = state, DayLedger()
        self._items = dataset.interactions.items[-5_000:]
        self._at, self._users, self._done = dataset.ends_at, dataset.n_users, 0

    def write(self) -> None:
        self._done += 1
        item = self._items[self._done * 37 % len(self._items)][None]
        user = np.array([self._users + self._done], np.int32)
        changes = self._ledger.changes(user, item, np.ones(1), np.array([self._at + self._done / 1_000]))
        self._state.fold(changes)


def stages(blend: Blend, queries: list[Query]) -> dict[str, float]:
    """Microseconds of each step, for users who were asked before."""
    live, ranker, kept = blend.live_counts, blend.ranker, blend._kept
    signals = queries[0].live
    if signals is None:
        raise ValueError("nobody counts")
    found: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *given: Any) -> Any:
        started = time.perf_counter()
        result = work(*given)
        found.setdefault(name, []).append((time.perf_counter() - started) * 1e6)
        return result

    for query in queries:
        blend.recommend(query)
    for query in queries:
        chosen = timed("candidates, kept", blend._found, query)
        allowed = timed("filters, kept", blend._allowed, query, chosen)
        timed("filters", blend._allowed, query, chosen._replace(allowed=None))
        personal, front, since = chosen.personal, kept.front(chosen.leading, blend._front), chosen.since
        steps = timed("where visitors of the latest items were, kept", steps_of, query)
        timed("candidates, of a new history", blend._find, query, None, front, since, steps)
        timed("candidates, after an event of somebody's", blend._find, query, chosen, front, since, steps)
        view = timed("features", blend._view, query, personal)
        timed("of them shares", live.log_shares_of, query, view.positions)
        scores = timed("ranker", ranker.scores, view.features, view.context)
        timed("cut", _highest, view.positions, scores, allowed, query.limit)
        best = timed("all of it", blend.recommend, query).positions[:SHOWN]
        timed("reasons for ten", blend.reasons, query, best)
        kept.keep_found(blend._asker(query), chosen._replace(personal=personal._replace(reasons={})))
        blend.recommend(query)
        timed("reasons for ten, not given before", blend.reasons, query, best)
    return {name: statistics.median(costs) for name, costs in found.items()}


def recall(blend: Blend, queries: list[Query]) -> str:
    """How many of the best 10 and 50 by the ranker over all items are in the answers."""
    same, ten, fifty = 0, [], []
    for query in queries:
        shown = blend.recommend(query).positions
        best = DenseRecommender.recommend(blend, query).positions
        same += shown[:10].tolist() == best[:10].tolist()
        ten.append(np.isin(best[:10], shown[:10]).mean())
        fifty.append(np.isin(best[:50], shown[:50]).mean())
    whole = np.mean(np.array(fifty) == 1)
    return (
        f"of {len(queries)} questions {same / len(queries):.2%} have the same ten in the same order; recall of the "
        f"best ten {np.mean(ten):.3%}, of the best fifty {np.mean(fifty):.3%}, all fifty in {whole:.2%}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, default=Path(".segue-benchmark") / "blend")
    options.add_argument("--queries", type=int, default=600)
    options.add_argument("--limit", type=int, default=50, help="items asked for; a page of ten asks for 50")
    options.add_argument("--recall", action="store_true", help="compare with the ranker over all items, too")
    asked = options.parse_args()
    dataset = demo_data()
    release = fitted(dataset, asked.data)
    blend = release.recommenders["blend"]
    if not isinstance(blend, Blend):
        raise TypeError(f"{asked.data} holds no blend of this version; remove it")
    state = live_state_of(dataset)
    queries = questions(dataset, PositionedSignals(state, release.rows), asked.queries, asked.limit)
    with threadpool_limits(1, "blas"):
        compare(blend, queries, _Writer(dataset, state))
        for stage, cost in stages(blend, queries).items():
            print(f"  {stage:56} {cost:8.1f}")
        if asked.recall:
            print(recall(blend, queries))


def compare(blend: Blend, queries: list[Query], writer: _Writer) -> None:
    """Prints what a question costs; rounds alternate with the yardstick, for the machine is not always as fast."""
    greet, batch = hello(), max(len(queries) // ROUNDS, 1)
    costs: dict[str, list[float]] = {}

    def record(name: str, asked: list[Query], before: Callable[[], None]) -> None:
        cost = 0.0
        for query in asked:
            before()
            cost += microseconds(partial(answer, blend, query))
        costs.setdefault(name, []).append(cost / len(asked))
        costs.setdefault("GET /hello, no server", []).append(microseconds(greet, 500))

    answer(blend, queries[-1])
    for round_ in range(ROUNDS):
        asked = queries[round_ * batch : (round_ + 1) * batch]
        record("users not asked of late", asked, lambda: None)
        record("users asked before", asked, lambda: None)
        record("users asked before, an event between any two", asked, writer.write)
    print(f"{blend.n_items:,} items, {len(queries)} users; microseconds of CPU, median of {ROUNDS} rounds (best)")
    for name, found in costs.items():
        print(f"  {name:56} {statistics.median(found):8.1f} ({min(found):.1f})")


if __name__ == "__main__":
    main()
