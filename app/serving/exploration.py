"""For a share of users the order of a slate is drawn, so that another order can be judged by what they did. Pure.

The draw is a Plackett–Luce ranking (Plackett 1975): place by place, each item that is left is taken with a probability
in proportion to exp(logit). The logit is that of a power law over the rank without exploration, weight
rank^(-1/temperature): scores mean nothing across answers, ranks do (docs/decisions/0011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.serving.slate import Shown

POLICY = "plackett_luce"
"""Of slates of `/recommend`. Other draws have other names, so that nobody takes their probabilities for these."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exploration:
    """Whose slates are drawn, and how boldly.

    share:       of all users, 0..1; a user who is in stays in as it grows
    temperature: above 0; towards 0 the order is kept, far above 1 every order is as likely
    """

    share: float
    temperature: float

    def sampler(self, user_id: str, seed: str) -> Sampler | None:
        """What draws this user's slate; None for users who see the order as it is."""
        return self.sampler_anyway(seed) if uniform(user_id) < self.share else None

    def sampler_anyway(self, seed: str) -> Sampler:
        """For the rest of a slate whose first page was drawn."""
        return Sampler(self.temperature, seed)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws one slate. The same seed draws the same, with the same NumPy."""

    temperature: float
    seed: str

    def draw(self, slate: Sequence[Shown]) -> Draw:
        """A ranking of the whole slate, which is in the order that would be shown without exploration.

        The items' scores become what they were ordered by, so that they still never rise from one to the next.
        """
        logits = logits_of(len(slate), self.temperature)
        order, keys, propensities = plackett_luce(logits, generator_of(self.seed))
        ranking = [
            slate[i]._replace(score=key, propensity=propensity)
            for i, key, propensity in zip(order.tolist(), keys.tolist(), propensities.tolist(), strict=True)
        ]
        return Draw(self.temperature, tuple(slate), tuple(logits.tolist()), tuple(ranking))


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn, and from what.

    candidates: in the order without exploration, with the scores that made it
    logits:     of the candidates, in their order
    ranking:    the candidates as drawn, each with its propensity given those above it
    policy:     what made the logits
    """

    temperature: float
    candidates: tuple[Shown, ...]
    logits: tuple[float, ...]
    ranking: tuple[Shown, ...]
    policy: str = POLICY

    def record(self) -> dict[str, Any]:
        """For off-policy estimation, as JSON; candidates by row."""
        return {
            "policy": self.policy,
            "temperature": self.temperature,
            "candidates": [shown.row for shown in self.candidates],
            "logits": list(self.logits),
            "scores": [shown.score for shown in self.candidates],
        }


class Ranking(NamedTuple):
    """A drawn order of n items.

    order:        int64[n], indices of the items, first place first
    keys:         float64[n], by place: what they were sorted by, falling
    propensities: float64[n], by place: the probability of this item given those above it
    """

    order: NDArray[np.int64]
    keys: Floats
    propensities: Floats


def plackett_luce(logits: Floats, generator: np.random.Generator) -> Ranking:
    """One ranking: sorting by logit + standard Gumbel noise draws from Plackett–Luce (Yellott 1977)."""
    keys = logits + generator.gumbel(size=len(logits))
    order = np.argsort(-keys, kind="stable")
    return Ranking(order, keys[order], propensities_of(logits[order]))


def propensities_of(logits: Floats) -> Floats:
    """float64[n]: exp(logit) of each place over the sum from that place on; in log space, exact for any logits."""
    left = np.logaddexp.accumulate(logits[::-1])[::-1]
    propensities: Floats = np.exp(logits - left)
    return propensities


def logits_of(n: int, temperature: float) -> Floats:
    """float64[n]: -log(rank) / temperature, for ranks 1 … n."""
    return -np.log(np.arange(1, n + 1)) / temperature


def uniform(user_id: str) -> float:
    """Where the user stands in [0, 1), for ever; independent of every other hash of the id."""
    digest = blake2b(user_id.encode(), digest_size=8, person=b"segue.explore").digest()
    # A float holds 53 bits; with all 64 the highest would round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def generator_of(seed: str) -> np.random.Generator:
    """A generator of its own for each request id."""
    return np.random.default_rng(int.from_bytes(seed.encode(), "big"))
