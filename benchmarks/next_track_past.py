"""What the user's past adds to the blend of the next track, on ratings cut into sessions.

    python -m benchmarks.next_track_past demo/movietweetings-100k/ratings.dat.gz [--pause 86400]

A user's ratings with less than `--pause` seconds between two are a session, earlier sessions are the past. Everything
is fitted as a release fits it: recommenders on the older nine tenths of the sessions, rankers on the older two thirds
of the newest tenth. Both blends are asked the same questions, which come from the last third of that tenth. By these it
was chosen whether the past is asked, and that 12 tracks of it are and not 30. Without self-attention. Intervals are
95 %, by drawing whole sessions anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.next_track_quality import SEED, read_ratings
from models.data.dataset import Interactions
from models.data.pasts import Pasts
from models.data.sessions import Prefixes, Sessions, sessions_of_users, split_newest
from models.fit_next_blend import HELD_OUT, choices_of, unlearned, views_of
from models.next_blend import NextBlend
from models.next_recipes import COUNTED
from models.ranking.listwise import fit_listwise

HIDDEN, EPOCHS, JUDGED, CUT, DRAWS = 32, 12, 1 / 3, 20, 1_000


def rated(path: Path, pause: float) -> Sessions:
    users, items, times = read_ratings(path)
    _, users = np.unique(users, return_inverse=True)
    _, items = np.unique(items, return_inverse=True)
    order = np.argsort(times, kind="stable")
    users, items, unknown = users[order], items[order], np.full(len(order), np.nan, np.float32)
    signs = np.ones(len(order), np.int8)
    interactions = Interactions(
        users.astype(np.int32), items.astype(np.int32), np.ones_like(unknown), signs, unknown, times[order]
    )
    return sessions_of_users(interactions, int(items.max()) + 1, pause=pause)


def gains(sessions: Sessions, *, asks_past: bool) -> tuple[np.ndarray, np.ndarray]:
    """int64[q] sessions and float64[q, 3]: HR@20, MRR@20, and whether there was a past, of every question."""
    earlier, newest = split_newest(sessions, HELD_OUT)
    fitted = {name: fit(earlier) for name, fit in COUNTED.items()}
    pasts = Pasts.between(earlier, newest)
    if pasts is None:
        raise RuntimeError("nobody knows whose the sessions are")
    blend = NextBlend.of(fitted, unlearned(fitted, asks_past=asks_past), {}, asks_past=asks_past)
    prefixes = newest.prefixes()
    views = views_of(blend, prefixes, pasts=pasts if asks_past else None)
    cut = round(len(views) * (1 - JUDGED))
    ranker = fit_listwise(choices_of(views[:cut], SEED), seed=SEED, hidden=HIDDEN, epochs=EPOCHS)
    found = np.zeros((len(views) - cut, 3))
    asked = Prefixes(newest, prefixes.starts[cut:], prefixes.nexts[cut:]).session_of
    for row, (seen, place) in enumerate(views[cut:]):
        found[row, 2] = len(pasts.before(int(asked[row]))[0]) > 0
        if place is not None:
            scores = ranker.scores(seen.features, seen.context)
            ahead = int((scores > scores[place]).sum())
            found[row, :2] = (1, 1 / (ahead + 1)) if ahead < CUT else 0
    return asked, found


def interval(values: np.ndarray, sessions: np.ndarray) -> str:
    """The mean, by drawing whole sessions anew."""
    _, group = np.unique(sessions, return_inverse=True)
    sums, counts = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return f"{values.mean():.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--pause", type=float, default=86_400)
    asked = parser.parse_args()
    sessions = rated(asked.path, asked.pause)
    of_question, without = gains(sessions, asks_past=False)
    _, with_past = gains(sessions, asks_past=True)
    has_past = without[:, 2] > 0
    print(f"{len(sessions):,} sessions; {len(without):,} questions, {has_past.mean():.0%} of them with a past\n")
    print("| | questions | HR@20 | MRR@20 |\n| --- | --- | --- | --- |")
    for name, each in (("without", without), ("with the past", with_past), ("difference", with_past - without)):
        cells = " | ".join(interval(each[:, measure], of_question) for measure in (0, 1))
        print(f"| {name} | {len(each):,} | {cells} |")


if __name__ == "__main__":
    main()
