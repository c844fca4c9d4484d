"""Teaches the blend: the later part of the data is lived through again, choice by choice, with the live signals of
each moment and with sources that were fitted on what came before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import Progress, Query, Recommender, Scores
from models.data.dataset import Dataset
from models.data.gains import CUT_OFF, gains_at
from models.data.splits import Split, split_at
from models.live.counters import HALF_LIVES
from models.live.stream import Choice, choices_of
from models.ranking.features import CO_VISITS, CONTEXTS, SHARES, Surprise
from models.ranking.listwise import Choices, ListwiseRanker, fit_listwise
from models.retrieval.live_counts import LiveCounts
from models.retrieval.opinions import sources_among
from models.two_stage import Blend, live_counts_among

CUTS = (0.4, 0.7)
"""Where the sources are fitted again: those of a live service are of some days ago, too, and the first part of the
data is what the counters start from."""
MOST_CHOICES = 16_000
FEWEST_CHOICES = 300
"""Below this nothing is learned (see `unlearned`)."""
HELD_OUT = 0.1
"""Newest part of the choices: the ranker is measured on it and does not learn from it."""
DEFAULT_WEIGHT = 0.3

_PER_FEATURE = 60
_SAMPLE = 500
"""Users whose scores say what is usual of an item."""
_RECALL_AT = (50, 200)


def fit_blend(
    dataset: Dataset,
    fitted: Mapping[str, Recommender],
    refit: Callable[[Dataset], Mapping[str, Recommender]],
    *,
    seed: int,
    progress: Progress,
) -> Blend:
    """Learn the ranker on the later part of the dataset, and give it the sources fitted on all of it.

    fitted: live counts and the personal sources, by name, fitted on the whole dataset
    refit:  fits the same ones on an earlier part
    """
    lessons: list[_Lesson] = []
    splits = list(_segments(dataset))
    for step, split in enumerate(splits):
        part = f"{step + 1} of {len(splits)}"
        progress(f"blend: sources as of an earlier moment, {part}", 0.8 * step / len(splits))
        student = _student(split.earlier, refit(split.earlier), seed)
        watch = lambda done, part=part, step=step: progress(  # noqa: E731
            f"blend: choices, {part}", 0.8 * (step + 0.3 + 0.7 * done) / len(splits)
        )
        lessons += _lessons(dataset, split, student, MOST_CHOICES // len(splits), watch)
    progress("blend: weighing the opinions", 0.8)
    blend = _student(dataset, fitted, seed)
    n_held_out = max(round(len(lessons) * HELD_OUT), 1)
    # Where the right answer is not among the candidates there is nothing to tell apart: learning from those too, with
    # random items for the rest, ranked 2 to 8 % worse on later choices.
    learned = [lesson for lesson in lessons[:-n_held_out] if lesson.is_found]
    if len(learned) >= FEWEST_CHOICES:
        taught = replace(blend, ranker=fit_listwise(_stacked(learned), seed=seed))
        blend = replace(taught, chosen=_figures(taught, lessons[-n_held_out:]) | {"choices": len(learned)})
    progress("blend: done", 1.0)
    return blend


class _Lesson(NamedTuple):
    """One choice.

    features: float32[f, m], of the candidates, the chosen one first
    ranks:    int64[f], how many of the allowed items each feature puts before the chosen one, or level with it
    is_found: whether the chosen one was among the candidates
    """

    features: NDArray[np.float32]
    context: NDArray[np.float32]
    ranks: NDArray[np.int64]
    is_found: bool


def _segments(dataset: Dataset) -> Iterator[Split]:
    n = len(dataset.interactions)
    ends = [round(n * cut) for cut in (*CUTS, 1.0)]
    return (split_at(dataset, cut, until) for cut, until in pairwise(ends) if 0 < cut < until)


def _student(dataset: Dataset, fitted: Mapping[str, Recommender], seed: int) -> Blend:
    """A blend that has not learned anything: live counts, and a little of everything else."""
    names = [name for name in fitted if name != LiveCounts.name]
    live_counts = live_counts_among(fitted)
    return Blend(
        live_counts=live_counts,
        sources=sources_among(fitted, names),
        surprises=_surprises(dataset, fitted, names, seed),
        ranker=unlearned(len(names)),
        chosen={},
    )


def unlearned(n_sources: int) -> ListwiseRanker:
    """What ranks before anything was learned: live counts of all half-lives alike, and a little of the rest.

    On windows of 500 to 4,000 MovieTweetings 1 to 6 % better than one half-life, the one that foretold best, beside
    the same rest.
    """
    wide = np.full(len(SHARES) + len(CO_VISITS) + n_sources, DEFAULT_WEIGHT, np.float32)
    wide[: len(SHARES)] = 0
    wide[: len(HALF_LIVES)] = 1 / len(HALF_LIVES)
    shapes = (len(CONTEXTS), len(wide)), (0, len(wide)), (len(CONTEXTS), 0), (0,), (0,), (2, len(CONTEXTS))
    return ListwiseRanker(wide, *(np.zeros(shape, np.float32) for shape in shapes))


def _lessons(
    dataset: Dataset, split: Split, student: Blend, most: int, watch: Callable[[float], None]
) -> Iterator[_Lesson]:
    start = len(split.earlier.interactions)
    for n_choices, choice in enumerate(choices_of(dataset, start, start + len(split.later), most=most)):
        if n_choices % 100 == 0:
            watch(n_choices / most)
        yield _lesson(student, choice)


def _lesson(student: Blend, choice: Choice) -> _Lesson:
    view = student.view(choice.query)
    features, context = view.features[:-1], view.context
    allowed = np.ones(features.shape[1], np.bool_)
    allowed[choice.query.excluded] = False
    shown = np.where(allowed, features, -np.inf)
    candidates = _candidates(shown)
    others = candidates[candidates != choice.chosen]
    return _Lesson(
        features=features[:, np.concatenate([[choice.chosen], others])],
        context=context,
        ranks=(shown >= features[:, [choice.chosen]]).sum(axis=1) - 1,
        is_found=len(others) < len(candidates),
    )


def _candidates(shown: Scores) -> NDArray[np.int64]:
    """int64[m]: the best by each feature."""
    depth = min(_PER_FEATURE, shown.shape[1])
    best: NDArray[np.int64] = np.unique(np.argpartition(-shown, depth - 1, axis=1)[:, :depth])
    found: NDArray[np.int64] = best[np.isfinite(shown[0, best])]
    return found


def _stacked(lessons: Sequence[_Lesson]) -> Choices:
    widest = max(lesson.features.shape[1] for lesson in lessons)
    features = np.zeros((len(lessons), len(lessons[0].features), widest), np.float32)
    offered = np.zeros((len(lessons), widest), np.bool_)
    for row, lesson in enumerate(lessons):
        m = lesson.features.shape[1]
        features[row, :, :m], offered[row, :m] = lesson.features, True
    return Choices(features, offered, np.stack([lesson.context for lesson in lessons]))


def _figures(blend: Blend, lessons: Sequence[_Lesson]) -> dict[str, Any]:
    """What the held-out choices say: NDCG@10 of the candidates, the weights, and each feature's recall."""
    names, choices = blend.feature_names, _stacked(lessons)
    effects, found = [], []
    for lesson in lessons:
        scores = blend.ranker.scores(lesson.features, lesson.context)
        found.append(int((scores[1:] >= scores[0]).sum()) if lesson.is_found else CUT_OFF)
        effects.append(blend.ranker.effects(lesson.features, lesson.context).mean(axis=1))
    spread = np.moveaxis(choices.features, 1, 2)[choices.offered].std(axis=0)
    ranks = np.stack([lesson.ranks for lesson in lessons])
    return {
        "held_out": len(lessons),
        "ndcg": float(gains_at(np.array(found)).mean()),
        "live_counts_ndcg": float(gains_at(ranks[:, blend.live_counts.served]).mean()),
        "weights": dict(zip(names, (np.mean(effects, axis=0) * spread).astype(float).round(4).tolist(), strict=True)),
        "recall": {
            f"@{depth}": dict(zip(names, (ranks < depth).mean(axis=0).round(4).tolist(), strict=True))
            | {"any": round(float((ranks < depth).any(axis=1).mean()), 4)}
            for depth in _RECALL_AT
        },
    }


def _surprises(dataset: Dataset, fitted: Mapping[str, Recommender], names: list[str], seed: int) -> dict[str, Surprise]:
    histories = [history for history in dataset.histories() if len(history)]
    chosen = np.random.default_rng(seed).permutation(len(histories))[:_SAMPLE]
    queries = [Query(limit=0, at=dataset.ends_at, history=histories[index]) for index in chosen]
    empty = np.empty((0, dataset.n_items), np.float32)
    return {
        name: Surprise.of(np.stack([fitted[name].scores(query) for query in queries]) if queries else empty)
        for name in names
    }
