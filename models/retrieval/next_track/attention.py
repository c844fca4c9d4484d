"""Self-attention over a session, served in numpy: a few products of small matrices, then one look at the tracks.

What it is and how it learns stands in `attention_fit`, which needs torch; this module doesn't.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from models.contracts import Arrays, Indices, NextCandidates, Parameters, Parts, Scores, SessionQuery
from models.retrieval.next_track.answers import UNKNOWN_LISTENING, Heard, answer

_LAYER = ("before", "project", "distance", "join", "between", "inner", "outer")


@dataclass(frozen=True)
class SessionAttention:
    """Built by `attention_fit.fit_session_attention` or `from_parts`.

    vectors:         float32[n, d], rows of length 1
    layers:          by name float32 arrays; matrices carry their bias as the last row, norms are [scale, shift]
    fraction:        float32[d], what having been heard to the end adds to a track, half of it; unknown adds nothing
    last:            float32[2, d], the norm after the layers
    out:             float32[d + 1, d]
    temperature:     the factor of the cosines
    listening:       float32[d + 1, d]
    usual_listening: float32[n], logits of the fraction that is expected of each track anywhere
    knows_listening: whether any fraction was measured where it learned
    """

    name: ClassVar[str] = "session_attention"
    vectors: Scores
    layers: tuple[Mapping[str, NDArray[np.float32]], ...]
    fraction: Scores
    last: Scores
    out: Scores
    temperature: float
    listening: Scores
    usual_listening: Scores
    knows_listening: bool

    @property
    def n_items(self) -> int:
        return len(self.vectors)

    def next(self, query: SessionQuery) -> NextCandidates:
        heard = Heard.of(query, self.n_items)
        if len(heard.positions) == 0:
            return answer(np.empty(0, np.int32), np.empty(0, np.float32), query)
        state = self.state(heard)
        scores = np.asarray(self.vectors @ self.direction(state), np.float32)
        found = answer(np.arange(self.n_items, dtype=np.int32), scores, query)
        return found._replace(listening=self.expected_listening(state, found.positions))

    def state(self, session: Heard) -> Scores:
        """float32[d]: what is expected after a session of 1 … LONGEST tracks.

        Only the last layer's last place is needed, and only it is worked out.
        """
        d = self.vectors.shape[1]
        state: Scores = self.vectors[session.positions] * np.float32(math.sqrt(d))
        heard = session.fractions - np.float32(0.5)
        heard[np.isnan(heard)] = 0
        state += heard[:, None] * self.fraction
        for layer in self._folded[:-1]:
            state = _attended(state, layer)
        return self._out(_attended_last(state, self._folded[-1]))

    @cached_property
    def _folded(self) -> tuple[_Folded, ...]:
        return tuple(_Folded.of(layer) for layer in self.layers)

    @cached_property
    def _out(self) -> _NormedLinear:
        return _NormedLinear.of(self.last, self.out)

    def direction(self, state: Scores) -> Scores:
        """float32[d]: its product with a track's vector is the track's score."""
        return np.asarray(state * np.float32(self.temperature / max(float(np.linalg.norm(state)), 1e-9)))

    def expected_listening(self, state: Scores, positions: Indices) -> Scores:
        """float32[k]: the fraction of each that will be heard, 0–1; the same for all if none was ever measured."""
        if not self.knows_listening:
            return np.full(len(positions), UNKNOWN_LISTENING, np.float32)
        wanted = _linear(state[None], self.listening)[0]
        logits = self.vectors[positions] @ wanted + self.usual_listening[positions]
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    def parts(self) -> Parts:
        arrays = {f"layer{depth}_{name}": layer[name] for depth, layer in enumerate(self.layers) for name in _LAYER}
        arrays |= {
            "vectors": self.vectors, "fraction": self.fraction, "last": self.last, "out": self.out,
            "listening": self.listening, "usual_listening": self.usual_listening,
        }  # fmt: skip
        parameters: dict[str, Any] = {
            "temperature": self.temperature, "layers": len(self.layers), "knows_listening": self.knows_listening
        }  # fmt: skip
        return Parts(parameters, arrays)

    @classmethod
    def from_parts(cls, parameters: Parameters, arrays: Arrays) -> Self:
        return cls(
            vectors=arrays["vectors"],
            layers=tuple(
                {name: np.array(arrays[f"layer{depth}_{name}"], np.float32) for name in _LAYER}
                for depth in range(int(parameters["layers"]))
            ),
            fraction=arrays["fraction"],
            last=arrays["last"],
            out=arrays["out"],
            temperature=float(parameters["temperature"]),
            listening=arrays["listening"],
            usual_listening=arrays["usual_listening"],
            knows_listening=bool(parameters["knows_listening"]),
        )


class _NormedLinear(NamedTuple):
    """A norm and the linear layer behind it as one: what the norm takes off and scales by is in the weights.

    weights: float32[d, e], float32[e] is the bias
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, rows: Scores) -> Scores:
        """float32[..., e] from float32[..., d]."""
        share = np.float32(1 / rows.shape[-1])
        mean = np.add.reduce(rows, axis=-1, keepdims=True) * share
        variance = np.add.reduce(rows * rows, axis=-1, keepdims=True) * share - mean * mean
        return np.asarray(rows @ self.weights / np.sqrt(variance + np.float32(1e-5)) + self.bias)

    @classmethod
    def of(cls, norm: NDArray[np.float32], linear: NDArray[np.float32]) -> _NormedLinear:
        weights = norm[0][:, None] * linear[:-1]
        return cls(weights - weights.mean(axis=0), norm[1] @ linear[:-1] + linear[-1])


class _Folded(NamedTuple):
    """A layer as it is served. distance: float32[heads, LONGEST]; join, outer: with their bias as the last row."""

    project: _NormedLinear
    distance: NDArray[np.float32]
    join: NDArray[np.float32]
    inner: _NormedLinear
    outer: NDArray[np.float32]

    @classmethod
    def of(cls, layer: Mapping[str, NDArray[np.float32]]) -> _Folded:
        project = _NormedLinear.of(layer["before"], layer["project"])
        inner = _NormedLinear.of(layer["between"], layer["inner"])
        return cls(project, layer["distance"], layer["join"], inner, layer["outer"])


def _attended(state: Scores, layer: _Folded) -> Scores:
    """float32[n, d]: every place asks those before it."""
    n, d = state.shape
    heads = len(layer.distance)
    # One matrix per head: float32[heads, n, d / heads].
    query, key, value = layer.project(state).reshape(n, 3, heads, d // heads).transpose(1, 2, 0, 3)
    back = np.arange(n)[:, None] - np.arange(n)
    logits = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(d // heads))
    logits += layer.distance[:, np.maximum(back, 0)]
    logits[:, back < 0] = -np.inf
    found = (_shares(logits) @ value).transpose(1, 0, 2).reshape(n, d)
    return _through(state + _linear(found, layer.join), layer)


def _attended_last(state: Scores, layer: _Folded) -> Scores:
    """float32[d]: only the last place asks."""
    n, d = state.shape
    heads = len(layer.distance)
    query, key, value = layer.project(state).reshape(n, 3, heads, d // heads).transpose(1, 2, 0, 3)
    logits = (key @ query[:, -1, :, None])[:, :, 0] / np.float32(math.sqrt(d // heads))
    logits += layer.distance[:, n - 1 :: -1]
    found = (_shares(logits)[:, None] @ value).reshape(d)
    return _through(state[-1] + _linear(found, layer.join), layer)


def _shares(logits: Scores) -> Scores:
    """The softmax over the last axis."""
    powers = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return np.asarray(powers)


def _through(state: Scores, layer: _Folded) -> Scores:
    return np.asarray(state + _linear(_gelu(layer.inner(state)), layer.outer))


def _linear(rows: Scores, weights: NDArray[np.float32]) -> Scores:
    return np.asarray(rows @ weights[:-1] + weights[-1])


def _gelu(values: Scores) -> Scores:
    """The tanh form of Hendrycks and Gimpel, "Gaussian error linear units" (2016)."""
    inner = values * values
    inner *= np.float32(0.044715 * math.sqrt(2 / math.pi))
    inner += np.float32(math.sqrt(2 / math.pi))
    inner *= values
    np.tanh(inner, out=inner)
    inner += 1
    return np.asarray(inner * values * np.float32(0.5))
