"""Every recommender by name: how it is fitted, how it is built again, and what it stands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from models.contracts import Arrays, Parameters, Progress, Recommender, Scores, unwatched
from models.data.dataset import Dataset
from models.fit_blend import fit_blend
from models.retrieval.als_hybrid import AlsHybrid, fit_als_hybrid, refit_als_hybrid
from models.retrieval.content_clusters import ContentClusters, fit_content_clusters
from models.retrieval.content_profile import ContentProfile, fit_content_profile
from models.retrieval.item_similarity import ItemSimilarity, fit_item_similarity, refit_item_similarity
from models.retrieval.live_counts import LiveCounts, fit_live_counts, refit_live_counts
from models.retrieval.popularity import Popularity, fit_popularity, refit_popularity
from models.two_stage import Blend


@dataclass(frozen=True, slots=True)
class FitContext:
    """What a fit gets beside the dataset.

    content: float32[n_items, d], rows of `ContentEncoder.transform`
    fitted:  the recommenders that the recipe needs, by name
    """

    seed: int
    progress: Progress
    content: Scores
    fitted: Mapping[str, Recommender]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to make one recommender.

    load:  builds it from `Recommender.parts` and the recommenders that it needs
    needs: names of recipes that come before it in RECIPES
    """

    name: str
    fit: Callable[[Dataset, FitContext], Recommender]
    load: Callable[[Parameters, Arrays, Mapping[str, Recommender]], Recommender]
    needs: tuple[str, ...] = ()


def _popularity(dataset: Dataset, context: FitContext) -> Recommender:
    return fit_popularity(dataset, progress=context.progress)


def _live_counts(dataset: Dataset, context: FitContext) -> Recommender:
    return fit_live_counts(dataset, context.content, progress=context.progress)


def _item_similarity(dataset: Dataset, context: FitContext) -> Recommender:
    return fit_item_similarity(dataset, seed=context.seed, progress=context.progress)


def _als_hybrid(dataset: Dataset, context: FitContext) -> Recommender:
    return fit_als_hybrid(dataset, context.content, seed=context.seed, progress=context.progress)


def _content_profile(_: Dataset, context: FitContext) -> Recommender:
    return fit_content_profile(context.content, seed=context.seed, progress=context.progress)


def _content_clusters(dataset: Dataset, context: FitContext) -> Recommender:
    return fit_content_clusters(dataset, context.content, seed=context.seed, progress=context.progress)


def _blend(dataset: Dataset, context: FitContext) -> Recommender:
    def refit(earlier: Dataset) -> dict[str, Recommender]:
        return {name: _refit(like, earlier, context) for name, like in context.fitted.items()}

    return fit_blend(dataset, context.fitted, refit, seed=context.seed, progress=context.progress)


def _refit(like: Recommender, dataset: Dataset, context: FitContext) -> Recommender:
    """Fit other data by the choices of a recommender that was fitted before, where it has any to keep."""
    match like:
        case Popularity():
            return refit_popularity(like, dataset)
        case LiveCounts():
            return refit_live_counts(like, dataset, context.content)
        case ItemSimilarity():
            return refit_item_similarity(like, dataset)
        case AlsHybrid():
            return refit_als_hybrid(like, dataset, context.content, seed=context.seed)
        case _:
            return RECIPES[like.name].fit(dataset, replace(context, progress=unwatched))


BLENDED = ("live_counts", "item_similarity", "als_hybrid", "content_profile")
"""What the blend stands on."""
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("popularity", _popularity, lambda p, a, _: Popularity.from_parts(p, a)),
        Recipe("live_counts", _live_counts, lambda p, a, _: LiveCounts.from_parts(p, a)),
        Recipe("item_similarity", _item_similarity, lambda p, a, _: ItemSimilarity.from_parts(p, a)),
        Recipe("als_hybrid", _als_hybrid, lambda p, a, _: AlsHybrid.from_parts(p, a)),
        Recipe("content_profile", _content_profile, lambda p, a, _: ContentProfile.from_parts(p, a)),
        Recipe("content_clusters", _content_clusters, lambda p, a, _: ContentClusters.from_parts(p, a)),
        Recipe("blend", _blend, Blend.from_parts, needs=BLENDED),
    )
}
"""In the order in which they are fitted: a recipe comes after those it needs."""


def with_needs(names: list[str] | None) -> list[Recipe]:
    """The recipes of these names (None: all) and those they need, in fit order."""
    if names is None:
        return list(RECIPES.values())
    if unknown := sorted(set(names) - set(RECIPES)):
        raise ValueError(f"no recipe is called {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    wanted = set(names)
    for name in reversed(RECIPES):
        if name in wanted:
            wanted |= set(RECIPES[name].needs)
    return [recipe for name, recipe in RECIPES.items() if name in wanted]
