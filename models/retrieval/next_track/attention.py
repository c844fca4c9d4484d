"""Self-attention over a session, served in numpy: a few products of small matrices, then one look at the tracks.

What it is and how it learns stands in `attention_fit`, which needs torch; this module doesn't.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

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
        heard = np.nan_to_num(session.fractions - np.float32(0.5), nan=0.0)
        state: Scores = self.vectors[session.positions] * np.float32(math.sqrt(d)) + heard[:, None] * self.fraction
        for depth, layer in enumerate(self.layers):
            state = _attended(state, layer, last_only=depth == len(self.layers) - 1)
        return np.asarray(_linear(_normed(state[-1:], self.last), self.out)[0])

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


def _attended(state: Scores, layer: Mapping[str, NDArray[np.float32]], *, last_only: bool) -> Scores:
    """float32[n, d], or float32[1, d] of the last place alone."""
    n, d = state.shape
    heads = len(layer["distance"])
    asking = slice(n - 1, n) if last_only else slice(0, n)
    projected = _linear(_normed(state, layer["before"]), layer["project"]).reshape(n, 3, heads, d // heads)
    query, key, value = projected[asking, 0], projected[:, 1], projected[:, 2]
    back = np.arange(n)[asking, None] - np.arange(n)
    logits = np.einsum("qhe,khe->hqk", query, key) / np.float32(math.sqrt(d // heads))
    logits += layer["distance"][:, np.maximum(back, 0)]
    logits[:, back < 0] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    found = np.einsum("hqk,khe->qhe", weights, value).reshape(-1, d)
    state = state[asking] + _linear(found, layer["join"])
    return state + _linear(_gelu(_linear(_normed(state, layer["between"]), layer["inner"])), layer["outer"])


def _linear(rows: Scores, weights: NDArray[np.float32]) -> Scores:
    return np.asarray(rows @ weights[:-1] + weights[-1])


def _normed(rows: Scores, norm: NDArray[np.float32]) -> Scores:
    centred = rows - rows.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))
    return np.asarray(centred / deviation * norm[0] + norm[1])


def _gelu(values: Scores) -> Scores:
    """The tanh form of Hendrycks and Gimpel, "Gaussian error linear units" (2016)."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (values + np.float32(0.044715) * values**3)
    return np.asarray(np.float32(0.5) * values * (1 + np.tanh(inner)))
