"""The list of recipes, and fitting them together."""

from __future__ import annotations

import pytest

from models.recipes import RECIPES, with_needs
from models.training import fit_recipes
from tests.recommender_contract import toy_dataset


def test_every_recipe_comes_after_what_it_needs() -> None:
    names = list(RECIPES)
    for position, recipe in enumerate(RECIPES.values()):
        assert set(recipe.needs) <= set(names[:position])


def test_needs_are_fitted_too() -> None:
    for name, recipe in RECIPES.items():
        assert [found.name for found in with_needs([name])] == [
            other for other in RECIPES if other in {name, *recipe.needs}
        ]


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(ValueError, match="no recipe is called bland; there are popularity"):
        with_needs(["bland", "popularity"])


def test_progress_only_ever_grows_and_ends_at_one() -> None:
    seen: list[tuple[str, float]] = []
    release = fit_recipes(
        toy_dataset(), names=["item_similarity", "popularity"], progress=lambda *step: seen.append(step)
    )
    fractions = [fraction for _, fraction in seen]
    assert list(release.recommenders) == ["popularity", "item_similarity"]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
