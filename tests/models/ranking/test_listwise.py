"""The listwise ranker: its gradient, what it can learn, and what is kept of it."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.ranking.listwise import (
    Choices,
    ListwiseRanker,
    _first_weights,
    _gradient,
    _Scale,
    _Weights,
    fit_listwise,
    softmax,
)

F, C, H = 3, 2, 5


def choices(n: int = 12, m: int = 6, seed: int = 0) -> Choices:
    """Candidates at random, the last ones of some rows padded; nothing is to be learned from them."""
    rng = np.random.default_rng(seed)
    offered = np.arange(m) < rng.integers(2, m + 1, n)[:, None]
    features = rng.normal(np.array([[1], [-2], [5]]), np.array([[1], [3], [0.5]]), (n, F, m)).astype(np.float32)
    return Choices(features * offered[:, None], offered, rng.normal(3, 2, (n, C)).astype(np.float32))


def weights(seed: int = 1) -> _Weights:
    """No weight is zero, so that every path carries a gradient; float64, so that differences mean something."""
    drawn = _first_weights(np.random.default_rng(seed), F, C, H)
    rng = np.random.default_rng(seed + 1)
    moved: list[Any] = [array + rng.normal(0, 0.3, array.shape) for array in drawn.arrays()]
    return _Weights(*moved)


def plain_loss(learned: _Weights, given: Choices) -> float:
    """The mean negative log-likelihood, choice by choice and item by item as the module's docstring writes it."""
    losses = []
    for x, offered, c in zip(given.features, given.offered, given.contexts.astype(np.float64), strict=True):
        scores = [
            (learned.wide + c @ learned.tilt) @ item
            + learned.out @ np.maximum(learned.hidden @ item + c @ learned.situation + learned.offset, 0)
            for item in x.T[offered].astype(np.float64)
        ]
        losses.append(np.log(np.exp(scores).sum()) - scores[0])
    return float(np.mean(losses))


def test_the_gradient_is_that_of_the_likelihood() -> None:
    learned, given, step = weights(), choices(), 1e-6
    for array, slopes in zip(learned.arrays(), _gradient(learned, given), strict=True):
        assert slopes.shape == array.shape
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + step
            above = plain_loss(learned, given)
            array[place] = kept - step
            below = plain_loss(learned, given)
            array[place] = kept
            assert slopes[place] == pytest.approx((above - below) / (2 * step), abs=1e-5)


def test_the_softmax_leaves_padding_out_and_bears_any_scores() -> None:
    scores = np.array([[1e4, 1e4, 1e9], [0.0, np.log(3), 7.0]], np.float32)
    offered = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(softmax(scores, offered), [[0.5, 0.5, 0], [0.25, 0.75, 0]], rtol=1e-6)


def test_with_the_scale_folded_in_differences_of_scores_are_the_same() -> None:
    given, learned = choices(), weights()
    scale = _Scale.of(given)
    ranker, scaled = scale.folded_into(learned), scale.applied(given, np.arange(len(given)))
    anywhere = np.array([[-99] * C, [99] * C], np.float32)
    on_scaled = ListwiseRanker(*[array.astype(np.float32) for array in (*learned.arrays(), anywhere)])
    for row in range(len(given)):
        here = given.offered[row]
        plain = ranker.scores(given.features[row][:, here], given.contexts[row])
        expected = on_scaled.scores(scaled.features[row][:, here], scaled.contexts[row])
        np.testing.assert_allclose(plain - plain[0], expected - expected[0], rtol=1e-3, atol=1e-4)
        assert np.argsort(plain).tolist() == np.argsort(expected).tolist()


def test_the_scale_is_that_of_what_was_offered() -> None:
    given = choices()
    padded = replace(given, features=np.where(given.offered[:, None], given.features, np.float32(1e6)))
    for expected, found in zip(_Scale.of(given), _Scale.of(padded), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_effects_are_the_derivative() -> None:
    ranker = _Scale.of(choices()).folded_into(weights())
    rng = np.random.default_rng(5)
    features, context = rng.normal(1, 2, (F, 400)).astype(np.float32), np.array([2.0, 4.0], np.float32)
    effects, step = ranker.effects(features, context), np.float32(0.02)
    for row in range(F):
        above, below = features.copy(), features.copy()
        above[row] += step
        below[row] -= step
        # Between two points of the same linear piece the difference is exact but for rounding.
        same = (ranker.effects(above, context) == ranker.effects(below, context)).all(axis=0)
        slopes = (ranker.scores(above, context) - ranker.scores(below, context)) / (2 * step)
        assert same.sum() > 300
        np.testing.assert_allclose(effects[row, same], slopes[same], rtol=1e-3, atol=2e-3)
    assert len(np.unique(effects.round(3), axis=1).T) > 3


def taken(features: NDArray[Any], utility: NDArray[Any], contexts: NDArray[Any]) -> Choices:
    """Of each row, the candidate of the highest utility was chosen: it is put first."""
    order = np.argsort(-utility, axis=1)
    ordered = np.take_along_axis(features, order[:, None], axis=2)
    return Choices(ordered.astype(np.float32), np.ones(order.shape, np.bool_), contexts.astype(np.float32))


def hit_rate(ranker: ListwiseRanker, given: Choices) -> float:
    """How often the chosen one comes first."""
    scores = [ranker.scores(x, context) for x, context in zip(given.features, given.contexts, strict=True)]
    return float(np.mean([row.argmax() == 0 for row in scores]))


def test_an_obvious_preference_is_learned() -> None:
    features = np.random.default_rng(0).normal(4, [[2], [1], [1]], (600, F, 8))
    given = taken(features, 2 * features[:, 0] - features[:, 1], np.zeros((600, C)))
    learned = Choices(given.features[:400], given.offered[:400], given.contexts[:400])
    later = Choices(given.features[400:], given.offered[400:], given.contexts[400:])
    ranker = fit_listwise(learned, seed=0)
    assert hit_rate(ranker, later) > 0.85
    effects = ranker.effects(later.features[0], later.contexts[0]).mean(axis=1)
    assert effects[0] > 0 > effects[1]
    assert abs(effects[2]) < 0.2 * effects[0]


def situational(n: int, seed: int) -> Choices:
    """The first feature counts in the one situation, in the other it is the second: high, or low."""
    rng = np.random.default_rng(seed)
    features, situations = rng.normal(size=(n, F, 8)), rng.integers(0, 2, n)
    utility = np.where(situations[:, None] == 1, features[:, 0], -features[:, 1])
    return taken(features, utility, np.stack([situations, rng.normal(size=n)], axis=1))


def test_what_counts_in_one_situation_only_is_learned_as_no_linear_ranker_can() -> None:
    learned, later = situational(800, 0), situational(300, 1)
    ranker = fit_listwise(learned, seed=0)
    linear = fit_listwise(replace(learned, contexts=np.zeros_like(learned.contexts)), seed=0, hidden=0)
    assert hit_rate(ranker, later) > 0.85
    assert hit_rate(linear, later) < 0.6
    for situation, strong, weak in ((1, 0, 1), (0, 1, 0)):
        context = np.array([situation, 0], np.float32)
        effects = np.abs(ranker.effects(later.features[0], context)).mean(axis=1)
        assert effects[strong] > 4 * effects[weak]


def test_a_situation_beyond_those_it_learned_from_is_taken_for_the_nearest() -> None:
    given = situational(200, 0)
    ranker = fit_listwise(given, seed=0)
    features, (lowest, highest) = given.features[0], (given.contexts.min(axis=0), given.contexts.max(axis=0))
    for beyond, nearest in ((highest + 50, highest), (lowest - 50, lowest)):
        for answer in (ranker.scores, ranker.effects):
            np.testing.assert_array_equal(answer(features, beyond), answer(features, nearest))


def test_a_liking_for_the_middle_is_learned_as_no_linear_ranker_can() -> None:
    def halfway(n: int, seed: int) -> Choices:
        features = np.random.default_rng(seed).normal(size=(n, F, 8))
        return taken(features, -np.abs(features[:, 1]), np.zeros((n, C)))

    learned, later = halfway(800, 0), halfway(300, 1)
    assert hit_rate(fit_listwise(learned, seed=0), later) > 0.6
    assert hit_rate(fit_listwise(learned, seed=0, hidden=0), later) < 0.3


def test_the_same_seed_learns_the_same_and_another_does_not() -> None:
    given = choices(100)
    one, again, other = (astuple(fit_listwise(given, seed=seed)) for seed in (3, 3, 4))
    for left, right in zip(one, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any((left != right).any() for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("hidden", [0, 7])
def test_it_comes_back_from_its_parts(hidden: int) -> None:
    given = choices()
    ranker = fit_listwise(given, seed=0, hidden=hidden)
    again = ListwiseRanker.from_parts(ranker.parts())
    for row in range(len(given)):
        scores = ranker.scores(given.features[row], given.contexts[row])
        np.testing.assert_array_equal(again.scores(given.features[row], given.contexts[row]), scores)
        assert scores.dtype == np.float32
    assert {array.dtype for array in ranker.parts().values()} == {np.dtype(np.float32)}


def test_one_choice_of_one_item_and_features_that_never_differ() -> None:
    alone = Choices(np.ones((1, F, 1), np.float32), np.ones((1, 1), np.bool_), np.ones((1, C), np.float32))
    scores = fit_listwise(alone, seed=0).scores(np.full((F, 4), 2, np.float32), np.ones(C, np.float32))
    assert np.isfinite(scores).all()


def test_no_items_have_no_scores() -> None:
    ranker = fit_listwise(choices(), seed=0)
    nothing, context = np.empty((F, 0), np.float32), np.zeros(C, np.float32)
    assert ranker.scores(nothing, context).shape == (0,)
    assert ranker.effects(nothing, context).shape == (F, 0)
