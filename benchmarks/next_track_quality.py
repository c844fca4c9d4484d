"""What each recommender of the next track foretells, and what it costs.

    python -m benchmarks.next_track_quality nowplaying sessions.parquet [--learned FOLDER] [--prefixes 89824]
    python -m benchmarks.next_track_quality ratings demo/movietweetings-100k/ratings.dat.gz
    python -m benchmarks.next_track_quality ratings ml-latest-small/ratings.csv.gz

`nowplaying`: the given split, every prefix of every test session, repeats allowed, HR@20 and MRR@20 over all tracks.
`ratings`: users with five ratings or more are sessions, the last item of each is the answer, ranked among all items
that the user has not rated before (leave-last-out); everything is fitted on what comes before.
What is served is chosen before on the newest tenth of the training sessions. `--learned` keeps self-attention between
runs. Reading Parquet needs pyarrow; self-attention needs the extra `train`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from models.contracts import NextTrackRecommender, Progress
from models.data.sessions import Prefixes, Sessions
from models.evaluation.next_item import NextItemRow, as_markdown, judge
from models.next_recipes import RIVALS, SERVED, attention_of, fit_next_recipes
from models.retrieval.next_track.attention import SessionAttention

SEED = 0
_FEWEST_RATINGS = 5


def nowplaying(path: Path) -> tuple[Sessions, Prefixes]:
    from pyarrow import parquet  # noqa: PLC0415

    table = parquet.read_table(path)
    session, item, is_test = (table[name].to_numpy() for name in ("session_id", "item_id", "is_test"))
    n_items = int(item.max())
    train, test = (Sessions.of(session[part], item[part] - 1, None, n_items) for part in (is_test == 0, is_test == 1))
    return train, test.prefixes()


def ratings(path: Path) -> tuple[Sessions, Prefixes]:
    users, items, times = read_ratings(path)
    _, users = np.unique(users, return_inverse=True)
    _, items = np.unique(items, return_inverse=True)
    kept = np.bincount(users)[users] >= _FEWEST_RATINGS
    users, items, times = users[kept], items[kept], times[kept]
    # Users in the order of their last rating, so that the newest sessions are the newest.
    last = np.zeros(users.max() + 1)
    np.maximum.at(last, users, times)
    order = np.lexsort((times, users, last[users]))
    whole = Sessions.of(users[order], items[order].astype(np.int32), None, int(items.max()) + 1)
    begins = np.ones(len(order), np.bool_)
    begins[whole.bounds[1:] - 1] = False
    return Sessions.of(users[order][begins], whole.tracks[begins], None, whole.n_items), whole.last_prefixes()


def read_ratings(path: Path) -> tuple[Any, Any, Any]:
    """Users, items and unix seconds from MovieTweetings' or MovieLens' own formats."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    rows = [line.split("::") for line in lines] if "::" in lines[0] else [line.split(",") for line in lines[1:]]
    columns = np.array(rows).T
    return columns[0].astype(np.int64), columns[1].astype(np.int64), columns[3].astype(np.float64)


def learned_attention(folder: Path | None) -> Callable[..., SessionAttention]:
    """Fits self-attention, or takes it from the folder when the same number of sessions was learned from."""

    def fit(sessions: Sessions, resumed: SessionAttention | None, seed: int, progress: Progress) -> SessionAttention:
        kept = None if folder is None else folder / f"attention-{len(sessions)}.npz"
        if kept is not None and kept.exists():
            with np.load(kept, allow_pickle=False) as arrays:
                parameters = json.loads(str(arrays["parameters"]))
                return SessionAttention.from_parts(parameters, {name: arrays[name] for name in arrays.files})
        learned = attention_of(sessions, resumed, seed, progress)
        if kept is not None:
            parameters, arrays = learned.parts()
            np.savez(kept, parameters=np.array(json.dumps(dict(parameters))), **arrays)
        return learned

    return fit


def said(started: float, what: str, fraction: float) -> None:
    print(f"{time.process_time() - started:7.0f} s CPU  {fraction:6.1%}  {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("nowplaying", "ratings"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--learned", type=Path)
    parser.add_argument("--prefixes", type=int, default=1_000_000, help="at most so many, drawn")
    parser.add_argument("--recipes", default=None, help="only these rows, with commas between")
    parser.add_argument("--without-attention", action="store_true")
    asked = parser.parse_args()
    train, prefixes = {"nowplaying": nowplaying, "ratings": ratings}[asked.kind](asked.path)
    prefixes = prefixes.sample(asked.prefixes, seed=SEED)
    print(
        f"{len(train):,} sessions, {len(train.tracks):,} listens, {train.n_items:,} items; {len(prefixes):,} questions"
    )
    wanted = None if asked.recipes is None else asked.recipes.split(",")
    repeats = asked.kind == "nowplaying"
    rows: list[NextItemRow] = []
    with threadpool_limits(1):
        for recommender in recommenders(train, wanted, asked):
            rows.append(judge(recommender, prefixes, repeats=repeats, seed=SEED))
            print(json.dumps({name: value for name, value in asdict(rows[-1]).items()}), flush=True)
    print(as_markdown(rows, served=SERVED))


def recommenders(train: Sessions, wanted: list[str] | None, asked: argparse.Namespace) -> Any:
    """One after the other, so that what takes long does not keep the others waiting."""
    for name, fit in RIVALS.items():
        if wanted is None or name in wanted:
            yield fit(train)
    if wanted is None or set(wanted) - set(RIVALS):
        started = time.process_time()
        fitted: dict[str, NextTrackRecommender] = fit_next_recipes(
            train,
            attention=learned_attention(asked.learned) if not asked.without_attention else None,
            seed=SEED,
            progress=partial(said, started),
        )
        print(json.dumps(getattr(fitted[SERVED], "chosen", {})), flush=True)
        for name, recommender in fitted.items():
            if name not in RIVALS and (wanted is None or name in wanted):
                yield recommender


if __name__ == "__main__":
    main()
