"""Which variant of an experiment a user is in: a pure function of the definition and the user's id.

The hashing is GrowthBook's, as its SDK specification publishes it (hash version 2), so that any GrowthBook SDK given
the same definition puts a user in the same variant: FNV-1a (Fowler, Noll, Vo) of seed and id, its decimal text hashed
once more, 10,000 buckets. Ids beyond ASCII, about which the SDKs disagree, are hashed as the Python one hashes them: by
UTF-16 code units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

BUCKETS = 10_000
NAMESPACE_BUCKETS = 1_000
_OFFSET = 0x811C9DC5
_PRIME = 0x01000193
_MASK = 0xFFFFFFFF


class Namespace(NamedTuple):
    """A share [start, end) of all users, by the hash of a name that several experiments have in common.

    Experiments with ranges of one namespace that do not overlap share no user. Two namespaces promise nothing of each
    other: their hash is GrowthBook's version 1, under which similar names are not independent.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """Who is in an experiment, and in which of its variants.

    seed:     what the hash starts with, not empty; another seed makes an independent experiment
    weights:  of the variants, in their order; they sum to 1
    coverage: share of users in the experiment, 0–1. As it grows, users join and none moves to another variant.
    forced:   index of a variant by user id, whatever the hash says
    """

    seed: str
    weights: tuple[float, ...]
    coverage: float = 1.0
    namespace: Namespace | None = None
    forced: Mapping[str, int] = field(default_factory=dict)
    _seed_hash: int = field(init=False, repr=False, compare=False)
    _ranges: tuple[tuple[float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Hashing goes from left to right, so the seed's part is the same for every user.
        object.__setattr__(self, "_seed_hash", fnv1a32(self.seed))
        object.__setattr__(self, "_ranges", _ranges(self.weights, self.coverage))

    def variant_of(self, user_id: str) -> int | None:
        """Index of the user's variant; None for a user who is not in the experiment."""
        if user_id in self.forced:
            return self.forced[user_id]
        if self.namespace is not None and not is_inside(self.namespace, user_id):
            return None
        bucket = fnv1a32(str(fnv1a32(user_id, self._seed_hash))) % BUCKETS / BUCKETS
        for variant, (start, end) in enumerate(self._ranges):
            if start <= bucket < end:
                return variant
        return None


def is_inside(namespace: Namespace, user_id: str) -> bool:
    """Whether the user is in the namespace's range."""
    bucket = fnv1a32(f"__{namespace.name}", _hash_of(user_id)) % NAMESPACE_BUCKETS / NAMESPACE_BUCKETS
    return namespace.start <= bucket < namespace.end


def fnv1a32(text: str, start: int = _OFFSET) -> int:
    """FNV-1a with 32 bits. start: the hash of what came before the text."""
    hashed = start
    if text.isascii():
        for unit in text.encode():
            hashed = ((hashed ^ unit) * _PRIME) & _MASK
        return hashed
    units = memoryview(text.encode("utf-16-le", "surrogatepass"))
    for low, high in zip(units[::2], units[1::2], strict=True):
        hashed = ((hashed ^ (low | high << 8)) * _PRIME) & _MASK
    return hashed


@lru_cache(maxsize=1)
def _hash_of(user_id: str) -> int:
    """A user is looked up in one namespace after another, whose names come after the id."""
    return fnv1a32(user_id)


def _ranges(weights: tuple[float, ...], coverage: float) -> tuple[tuple[float, float], ...]:
    """Each variant's buckets begin where they begin at full coverage: that is why nobody moves as it grows."""
    starts = [sum(weights[:variant]) for variant in range(len(weights))]
    return tuple((start, start + coverage * weight) for start, weight in zip(starts, weights, strict=True))
