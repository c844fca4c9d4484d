"""From a Dataset to everything that a release serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from threadpoolctl import threadpool_limits

from models.contracts import LearnedNextTrack, Progress, Recommender, Scores, unwatched
from models.data.dataset import Dataset
from models.data.features import ContentEncoder, fit_content_encoder
from models.recipes import FitContext, with_needs

THREADS = 1
"""For BLAS: threads that wait for each other on busy cores cost more than they bring, and change last digits."""


@dataclass(frozen=True, slots=True)
class FittedRelease:
    """What was fitted together and is served together.

    content:      float32[n_items, d], what the encoder says of the dataset's items
    recommenders: by name, in fit order
    next_tracks:  of `models.next_recipes.fit_next_recipes`, where there are sessions to learn from
    """

    encoder: ContentEncoder
    content: Scores
    recommenders: dict[str, Recommender]
    seed: int
    next_tracks: Mapping[str, LearnedNextTrack] = field(default_factory=dict)


def fit_recipes(
    dataset: Dataset,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = unwatched,
) -> FittedRelease:
    """Fit the named recipes (None: all) and those they need.

    progress: gets what is being fitted and the fraction of the whole that is done, recipes counting alike
    """
    recipes = with_needs(None if names is None else list(names))
    progress("content encoder", 0.0)
    encoder = fit_content_encoder(dataset.items, seed=seed)
    content = encoder.transform(dataset.items)
    fitted: dict[str, Recommender] = {}
    with threadpool_limits(THREADS, "blas"):
        for step, recipe in enumerate(recipes):
            watch = _share_of(progress, step, len(recipes))
            needed = {name: fitted[name] for name in recipe.needs}
            fitted[recipe.name] = recipe.fit(dataset, FitContext(seed, watch, content, needed))
    progress("done", 1.0)
    return FittedRelease(encoder, content, fitted, seed)


def _share_of(progress: Progress, step: int, steps: int) -> Progress:
    return lambda what, fraction: progress(what, (step + fraction) / steps)
