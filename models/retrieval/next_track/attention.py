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

_EPSILON = 1e-5
_LINE = math.sqrt(2 / math.pi)
_CUBE = 0.044715 * _LINE
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
        rows = self.vectors.take(session.positions, axis=0)
        rows *= np.float32(math.sqrt(rows.shape[1]))
        heard = session.fractions - np.float32(0.5)
        heard[np.isnan(heard)] = 0
        rows += heard[:, None] * self.fraction
        for layer in self._layers_before:
            rows = _attended(rows, layer)
        return self._out.of_one(_attended_last(rows, self._last_layer))

    @cached_property
    def _layers_before(self) -> tuple[_Folded, ...]:
        return tuple(_Folded.of(layer) for layer in self.layers[:-1])

    @cached_property
    def _last_layer(self) -> _FoldedLast:
        return _FoldedLast.of(_Folded.of(self.layers[-1]))

    @cached_property
    def _out(self) -> _NormedLinear:
        return _NormedLinear.of(self.last, self.out)

    def direction(self, state: Scores) -> Scores:
        """float32[d]: its product with a track's vector is the track's score."""
        return np.asarray(state * np.float32(self.temperature / max(math.sqrt(state.dot(state)), 1e-9)))

    def expected_listening(self, state: Scores, positions: Indices) -> Scores:
        """float32[k]: the fraction of each that will be heard, 0–1; the same for all if none was ever measured."""
        if not self.knows_listening:
            return np.full(len(positions), UNKNOWN_LISTENING, np.float32)
        return np.asarray(1 / (1 + np.exp(-self.listening_logits(state, positions))), np.float32)

    def listening_logits(self, state: Scores, positions: Indices) -> Scores:
        """float32[k]"""
        wanted = state.dot(self.listening[:-1]) + self.listening[-1]
        return np.asarray(self.vectors.take(positions, axis=0).dot(wanted) + self.usual_listening[positions])

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

    weights: float32[d, e]
    bias:    float32[e]
    average: float32[d], each 1 / d
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    average: NDArray[np.float32]

    def of_rows(self, rows: Scores) -> Scores:
        """float32[n, e] from float32[n, d]."""
        return np.asarray(rows.dot(self.weights) * self.scales(rows)[:, None] + self.bias)

    def of_one(self, row: Scores) -> Scores:
        """float32[e] from float32[d]. Single numbers are reckoned with as Python's own, in a tenth of numpy's time."""
        mean = float(row.dot(self.average))
        found = row.dot(self.weights)
        found *= 1 / math.sqrt(float(row.dot(row)) / len(row) - mean * mean + _EPSILON)
        found += self.bias
        return np.asarray(found)

    def scales(self, rows: Scores) -> Scores:
        """float32[n]: 1 over the standard deviation of each of float32[n, d]."""
        mean = rows.dot(self.average)
        variance = np.vecdot(rows, rows)
        variance *= self.average[0]
        variance -= mean * mean
        variance += _EPSILON
        return np.asarray(1 / np.sqrt(variance))

    @classmethod
    def of(cls, norm: NDArray[np.float32], linear: NDArray[np.float32]) -> _NormedLinear:
        weights = norm[0][:, None] * linear[:-1]
        average = np.full(len(weights), 1 / len(weights), np.float32)
        return cls(weights - weights.mean(axis=0), norm[1] @ linear[:-1] + linear[-1], average)


class _Linear(NamedTuple):
    """float32[d, e], float32[e]"""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __call__(self, rows: Scores) -> Scores:
        """float32[..., e] from float32[..., d]."""
        found = rows.dot(self.weights)
        found += self.bias
        return np.asarray(found)

    @classmethod
    def of(cls, weights: NDArray[np.float32], scale: float = 1.0) -> _Linear:
        """From weights with their bias as the last row; what comes in is `scale` times as large as it was."""
        return cls(weights[:-1] / np.float32(scale), weights[-1])


class _Folded(NamedTuple):
    """A layer as it is served. distance: float32[heads, LONGEST]"""

    project: _NormedLinear
    distance: NDArray[np.float32]
    join: _Linear
    inner: _NormedLinear
    outer: _Linear

    @classmethod
    def of(cls, layer: Mapping[str, NDArray[np.float32]]) -> _Folded:
        return cls(
            _NormedLinear.of(layer["before"], layer["project"]), layer["distance"], _Linear.of(layer["join"]),
            _NormedLinear.of(layer["between"], layer["inner"]), _Linear.of(layer["outer"], scale=2),
        )  # fmt: skip


class _FoldedLast(NamedTuple):
    """The last layer, whose last place alone asks: what does not depend on the session is multiplied out before.

    ask:  from the last row, normed, to float32[heads · d], whose products with each row are that head's logits but for
          what is the same for all rows
    tell: from float32[heads · d], each head's mean of the rows, to what the layer adds
    """

    ask: _Linear
    tell: _Linear
    layer: _Folded

    @classmethod
    def of(cls, layer: _Folded) -> _FoldedLast:
        d, heads = len(layer.project.average), len(layer.distance)
        query, key, value = layer.project.weights.reshape(d, 3, heads, d // heads).transpose(1, 2, 0, 3)
        query_bias, _, value_bias = layer.project.bias.reshape(3, heads, 1, d // heads)
        key = key.transpose(0, 2, 1) / np.float32(math.sqrt(d // heads))
        join = layer.join.weights.reshape(heads, d // heads, d)
        ask = _Linear((query @ key).transpose(1, 0, 2).reshape(d, heads * d), (query_bias @ key).ravel())
        tell = _Linear((value @ join).reshape(heads * d, d), (value_bias @ join).sum(axis=0)[0] + layer.join.bias)
        return cls(ask, tell, layer)


def _attended(state: Scores, layer: _Folded) -> Scores:
    """float32[n, d]: every place asks those before it."""
    n, d = state.shape
    heads = len(layer.distance)
    # One matrix per head: float32[heads, n, d / heads].
    query, key, value = layer.project.of_rows(state).reshape(n, 3, heads, d // heads).transpose(1, 2, 0, 3)
    back = np.arange(n)[:, None] - np.arange(n)
    logits = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(d // heads))
    logits += layer.distance[:, np.maximum(back, 0)]
    logits[:, back < 0] = -np.inf
    found = (_shares(logits) @ value).transpose(1, 0, 2).reshape(n, d)
    state = state + layer.join(found)
    return state + layer.outer(_gelu(layer.inner.of_rows(state)))


def _attended_last(rows: Scores, last: _FoldedLast) -> Scores:
    """float32[d] from float32[n, d]: only the last place asks."""
    n, d = rows.shape
    scales = last.layer.project.scales(rows)
    logits = last.ask(rows[-1] * scales[-1]).reshape(-1, d).dot(rows.T)
    logits *= scales
    logits += last.layer.distance[:, n - 1 :: -1]
    shares = _shares(logits)
    shares *= scales
    state = rows[-1] + last.tell(shares.dot(rows).ravel())
    return np.asarray(state + last.layer.outer(_gelu(last.layer.inner.of_one(state))))


def _shares(logits: Scores) -> Scores:
    """The softmax over the last axis."""
    powers = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return np.asarray(powers)


def _gelu(values: Scores) -> Scores:
    """Twice the tanh form of Hendrycks and Gimpel, "Gaussian error linear units" (2016)."""
    inner = values * values
    inner *= _CUBE
    inner += _LINE
    inner *= values
    np.tanh(inner, out=inner)
    inner += 1
    inner *= values
    return np.asarray(inner)
