"""A small ranker that learns from choices: of everything that was on offer, this is what the user took.

Linear weights that shift with the situation, and one hidden layer for what is not linear:

    score(x | c) = (w + C c)·x + v·relu(U x + V c + b)

x are an item's features, c says in which situation the user is. Fitted by the likelihood of the choices under a
softmax over the candidates (ListNet: Cao et al., "Learning to rank: from pairwise approach to listwise approach",
2007; the conditional logit of econometrics) with Adam (Kingma and Ba, 2015). The hidden layer follows the wide part
of Cheng et al., "Wide & deep learning for recommender systems" (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Mask, Scores

HIDDEN = 32
EPOCHS = 10
BATCH = 32
LEARNING_RATE = 6e-3
_WARM_UP = 100
_DECAY = 1e-5
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Choices:
    """What users chose, among what. The first candidate of each row is the one that was taken.

    features: float32[rows, features, candidates]
    offered:  bool[rows, candidates], False for padding
    contexts: float32[rows, contexts]
    """

    features: NDArray[np.float32]
    offered: Mask
    contexts: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class ListwiseRanker:
    """Built by `fit_listwise` or `from_parts`; takes features as they come, their scale is in the weights.

    wide:      float32[f]
    tilt:      float32[c, f], what each context adds to the wide weights
    hidden:    float32[h, f]
    situation: float32[c, h]
    offset:    float32[h]
    out:       float32[h]
    met:       float32[2, c], the lowest and highest of each context among the choices learned from
    """

    wide: Scores
    tilt: Scores
    hidden: Scores
    situation: Scores
    offset: Scores
    out: Scores
    met: Scores

    def scores(self, features: NDArray[np.float32], context: NDArray[np.float32]) -> Scores:
        """float32[n] from float32[f, n] and float32[c]."""
        return self.situated(context).scores(_with_constant(features))

    def effects(self, features: NDArray[np.float32], context: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[f, n]: by how much each item's score rises with each of its features (the gradient)."""
        return self.situated(context).effects(_with_constant(features))

    def situated(self, context: NDArray[np.float32]) -> SituatedRanker:
        """What it is in this situation: float32[c]."""
        units, by_context, always, half, through = self._halves
        h = len(through.T)
        added = self._nearest_met(context) @ by_context
        added += always
        weights = units.copy()
        weights[:h, -1], weights[h] = added[:h], added[h:]
        return SituatedRanker(weights, half, through)

    @cached_property
    def _halves(self) -> _Halves:
        h, f = self.hidden.shape
        half = self.out / np.float32(2)
        constants = np.vstack([self.situation, self.offset])
        linear = np.vstack([self.tilt, self.wide + half @ self.hidden])
        sums = np.hstack([constants, linear, (constants @ half)[:, None]])
        units = np.zeros((h + 1, f + 1), np.float32)
        units[:h, :f] = self.hidden
        return _Halves(units, sums[:-1], sums[-1], np.append(half, np.float32(1)), self.hidden.T * half)

    def _nearest_met(self, context: NDArray[np.float32]) -> NDArray[np.float32]:
        """What it learned says nothing of situations unlike any it learned from: they are taken for the nearest."""
        return np.asarray(np.minimum(np.maximum(context, self.met[0]), self.met[1]))

    def parts(self) -> dict[str, NDArray[np.float32]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_parts(cls, arrays: Arrays) -> Self:
        # Copied out of the memory map: a request reads all of these few numbers.
        return cls(**{field.name: np.array(arrays[field.name], np.float32) for field in fields(cls)})


class _Halves(NamedTuple):
    """relu(x) = (x + |x|) / 2: so a ranker is a linear part and, of every unit, half of |x|, which takes a fifth of the
    time of maximum.

    units:      float32[h + 1, f + 1], `SituatedRanker.weights` but for what depends on the situation, which is 0
    by_context: float32[c, h + f + 1], what a context adds to the units' constants, then to the linear part
    always:     float32[h + f + 1], the same of every situation
    half:       float32[h + 1], of the units' |x|, and 1
    through:    float32[f, h], what each feature adds to a score through each unit, by the unit's sign
    """

    units: NDArray[np.float32]
    by_context: NDArray[np.float32]
    always: Scores
    half: Scores
    through: NDArray[np.float32]


class SituatedRanker(NamedTuple):
    """A ranker in one situation: a function of the features alone.

    They come with a constant beside them: features float32[f + 1, n] of which the last row is ones.

    weights: float32[h + 1, f + 1], of the units, then of the linear part
    half, through: see `_Halves`
    """

    weights: NDArray[np.float32]
    half: Scores
    through: NDArray[np.float32]

    def scores(self, features: NDArray[np.float32]) -> Scores:
        """float32[n]."""
        before = self.weights @ features
        units = before[:-1]
        np.abs(units, out=units)
        return np.asarray(self.half @ before)

    def effects(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[f, n]: by how much each item's score rises with each of its features (the gradient; of a unit at
        exactly 0, the mean of both sides)."""
        signs = np.sign(self.weights[:-1] @ features)
        effects = self.through @ signs
        effects += self.weights[-1, :-1, None]
        return np.asarray(effects)


def _with_constant(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([features, np.ones((1, features.shape[1]), np.float32)])


def fit_listwise(choices: Choices, *, seed: int, hidden: int = HIDDEN, epochs: int = EPOCHS) -> ListwiseRanker:
    """Learn from at least one choice."""
    rng = np.random.default_rng(seed)
    scale = _Scale.of(choices)
    weights = _first_weights(rng, choices.features.shape[1], choices.contexts.shape[1], hidden)
    batches = [
        batch
        for _ in range(epochs)
        for batch in np.array_split(rng.permutation(len(choices)), max(len(choices) // BATCH, 1))
    ]
    adam = _Adam(weights)
    for step, batch in enumerate(batches):
        gradient = _gradient(weights, scale.applied(choices, batch))
        rate = LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP) * (1 - step / len(batches))
        adam.step(weights, gradient, rate)
    return scale.folded_into(weights)


@dataclass(slots=True)
class _Weights:
    """The ranker's arrays while they are learned, on standardised features and contexts."""

    wide: Scores
    tilt: Scores
    hidden: Scores
    situation: Scores
    offset: Scores
    out: Scores

    def arrays(self) -> list[Scores]:
        return [self.wide, self.tilt, self.hidden, self.situation, self.offset, self.out]


def _first_weights(rng: np.random.Generator, f: int, c: int, h: int) -> _Weights:
    wide = 1 / np.sqrt(f + c)
    drawn = (
        np.zeros(f),
        np.zeros((c, f)),
        rng.normal(0, wide, (h, f)),
        rng.normal(0, wide, (c, h)),
        np.zeros(h),
        rng.normal(0, 1 / np.sqrt(max(h, 1)), h),
    )
    return _Weights(*(np.asarray(array, np.float32) for array in drawn))


def _gradient(weights: _Weights, batch: Choices) -> list[NDArray[np.float32]]:
    """Of the mean negative log-likelihood of the choices, in the order of `_Weights.arrays`."""
    x, context = batch.features, batch.contexts
    before = weights.hidden @ x + (context @ weights.situation + weights.offset)[:, :, None]
    activated = np.maximum(before, 0)
    linear = weights.wide + context @ weights.tilt
    scores = np.einsum("nf,nfm->nm", linear, x) + np.einsum("h,nhm->nm", weights.out, activated)
    error = softmax(scores, batch.offered)
    error[:, 0] -= 1
    error /= len(batch)
    by_feature = np.einsum("nm,nfm->nf", error, x)
    into_hidden = error[:, None, :] * weights.out[:, None] * (before > 0)
    by_hidden = into_hidden.sum(axis=2)
    return [
        by_feature.sum(axis=0),
        context.T @ by_feature,
        np.tensordot(into_hidden, x, ((0, 2), (0, 2))),
        context.T @ by_hidden,
        by_hidden.sum(axis=0),
        np.einsum("nm,nhm->h", error, activated),
    ]


def softmax(scores: NDArray[np.float32], offered: Mask) -> NDArray[np.float32]:
    """float32[n, m]: each row's probabilities, 0 for what was not offered."""
    masked = np.where(offered, scores, np.float32(-np.inf))
    powers = np.exp(masked - masked.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


class _Adam:
    """Kingma and Ba's optimizer, with a little weight decay; changes the arrays in place."""

    def __init__(self, weights: _Weights) -> None:
        self._means = [np.zeros_like(array) for array in weights.arrays()]
        self._squares = [np.zeros_like(array) for array in weights.arrays()]
        self._steps = 0

    def step(self, weights: _Weights, gradient: Sequence[NDArray[np.float32]], rate: float) -> None:
        self._steps += 1
        unbias = 1 - _BETA_1**self._steps, 1 - _BETA_2**self._steps
        for array, mean, square, slope in zip(weights.arrays(), self._means, self._squares, gradient, strict=True):
            decayed = slope + _DECAY * array
            mean[...] = _BETA_1 * mean + (1 - _BETA_1) * decayed
            square[...] = _BETA_2 * square + (1 - _BETA_2) * decayed * decayed
            array[...] -= rate * (mean / unbias[0]) / (np.sqrt(square / unbias[1]) + _EPSILON)


class _Scale(NamedTuple):
    """Mean and deviation of every feature and context, and between what each context lies."""

    mean: Scores
    deviation: Scores
    context_mean: Scores
    context_deviation: Scores
    context_range: Scores

    @classmethod
    def of(cls, choices: Choices) -> Self:
        values = np.moveaxis(choices.features, 1, 2)[choices.offered]
        return cls(
            values.mean(axis=0, dtype=np.float64).astype(np.float32),
            _spread(values),
            choices.contexts.mean(axis=0),
            _spread(choices.contexts),
            np.stack([choices.contexts.min(axis=0), choices.contexts.max(axis=0)]),
        )

    def applied(self, choices: Choices, rows: NDArray[np.int64]) -> Choices:
        features = (choices.features[rows] - self.mean[:, None]) / self.deviation[:, None]
        contexts = (choices.contexts[rows] - self.context_mean) / self.context_deviation
        return Choices(features, choices.offered[rows], contexts)

    def folded_into(self, learned: _Weights) -> ListwiseRanker:
        """The same scores from unscaled features, but for a constant that is the same for all items of a list."""
        tilt = learned.tilt / self.deviation / self.context_deviation[:, None]
        wide = learned.wide / self.deviation - self.context_mean @ tilt
        hidden = learned.hidden / self.deviation
        situation = learned.situation / self.context_deviation[:, None]
        offset = learned.offset - hidden @ self.mean - self.context_mean @ situation
        arrays = wide, tilt, hidden, situation, offset, learned.out, self.context_range
        return ListwiseRanker(*(np.asarray(array, np.float32) for array in arrays))


def _spread(values: NDArray[np.float32]) -> Scores:
    """float32[k]: standard deviations, 1 where there is none."""
    deviation = values.std(axis=0, dtype=np.float64)
    return np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
