"""Which variant of an experiment a user is in: a pure function of the definition and the user's id.

The hashing is GrowthBook's, as its SDK specification publishes it (hash version 2), so that any GrowthBook SDK given
the same definition puts a user in the same variant: FNV-1a (Fowler, Noll, Vo) of seed and id, its decimal text hashed
once more, 10,000 buckets. Ids beyond ASCII, about which the SDKs disagree, are hashed as the Python one hashes them: by
UTF-16 code units.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
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
    seed_hash: int = field(init=False, repr=False, compare=False)
    part: Namespace | None = field(init=False, repr=False, compare=False)
    """The namespace, where anybody is outside."""
    _ranges: tuple[tuple[float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Hashing goes from left to right, so the seed's part is the same for every user.
        object.__setattr__(self, "seed_hash", fnv1a32(self.seed))
        is_whole = self.namespace is None or (self.namespace.start <= 0 and self.namespace.end >= 1)
        object.__setattr__(self, "part", None if is_whole else self.namespace)
        object.__setattr__(self, "_ranges", _ranges(self.weights, self.coverage))

    def variant_of(self, user_id: str) -> int | None:
        """Index of the user's variant; None for a user who is not in the experiment."""
        if user_id in self.forced:
            return self.forced[user_id]
        if self.part is not None and not is_inside(self.part, user_id):
            return None
        return self.variant_at(fnv1a32(user_id, self.seed_hash))

    def variant_at(self, hashed: int) -> int | None:
        """The same of a user who is neither forced nor outside. hashed: the id behind `seed_hash`."""
        bucket = fnv1a32(str(hashed)) % BUCKETS / BUCKETS
        for variant, (start, end) in enumerate(self._ranges):
            if start <= bucket < end:
                return variant
        return None


def variants_of(allocations: Sequence[Allocation], user_id: str) -> list[int | None]:
    """`variant_of` this user for each, with the id gone through once for all of them."""
    if len(allocations) < 3:  # fewer are quicker one by one
        return [each.variant_of(user_id) for each in allocations]
    # By itself, for the namespaces, and behind each seed.
    alone, *hashes = fnv1a32_after([_OFFSET, *(each.seed_hash for each in allocations)], user_id)
    parts = [each.part for each in allocations]
    buckets = {name: _bucket_in(name, alone) for name in {part.name for part in parts if part is not None}}
    found: list[int | None] = []
    for each, part, hashed in zip(allocations, parts, hashes, strict=True):
        if user_id in each.forced:
            found.append(each.forced[user_id])
        elif part is None or part.start <= buckets[part.name] < part.end:
            found.append(each.variant_at(hashed))
        else:
            found.append(None)
    return found


def is_inside(namespace: Namespace, user_id: str) -> bool:
    """Whether the user is in the namespace's range."""
    return namespace.start <= _bucket_in(namespace.name, fnv1a32(user_id)) < namespace.end


def _bucket_in(name: str, hashed: int) -> float:
    """hashed: of the user's id; in version 1 what is hashed with it comes after it."""
    return fnv1a32(f"__{name}", hashed) % NAMESPACE_BUCKETS / NAMESPACE_BUCKETS


def fnv1a32_after(starts: Sequence[int], text: str) -> list[int]:
    """The text's FNV-1a behind each of these hashes, as many as they are in one go.

    They lie side by side in one long integer, 64 bits for each: a hash of 32 bits times the prime of 25 stays within
    its lane, so that one operation does for all what it would do for each.
    """
    lanes = len(starts)
    hashed = int.from_bytes(struct.pack(f"<{lanes}Q", *starts), "little")
    in_each = _ones(lanes)
    mask = in_each * _MASK
    if text.isascii():
        for units in map(_ascii(lanes).__getitem__, text.encode()):
            hashed = ((hashed ^ units) * _PRIME) & mask
    else:
        for unit in _utf16(text):
            hashed = ((hashed ^ (in_each * unit)) * _PRIME) & mask
    return list(struct.unpack(f"<{lanes}Q", hashed.to_bytes(8 * lanes, "little")))


@lru_cache(maxsize=64)
def _ones(lanes: int) -> int:
    return sum(1 << 64 * lane for lane in range(lanes))


@lru_cache(maxsize=64)
def _ascii(lanes: int) -> tuple[int, ...]:
    """Each ASCII character in every lane."""
    return tuple(unit * _ones(lanes) for unit in range(128))


def fnv1a32(text: str, start: int = _OFFSET) -> int:
    """FNV-1a with 32 bits. start: the hash of what came before the text."""
    hashed = start
    units = text.encode() if text.isascii() else list(_utf16(text))
    # Higher bits never reach lower ones: to cut them off at every fourth step only is a sixth quicker.
    for one, two, three, four in zip(*[iter(units)] * 4, strict=False):
        hashed = ((((((((hashed ^ one) * _PRIME) ^ two) * _PRIME) ^ three) * _PRIME) ^ four) * _PRIME) & _MASK
    for last in units[len(units) - len(units) % 4 :]:
        hashed = ((hashed ^ last) * _PRIME) & _MASK
    return hashed


def _utf16(text: str) -> Iterator[int]:
    """Its code units."""
    units = memoryview(text.encode("utf-16-le", "surrogatepass"))
    return (low | high << 8 for low, high in zip(units[::2], units[1::2], strict=True))


def _ranges(weights: tuple[float, ...], coverage: float) -> tuple[tuple[float, float], ...]:
    """Each variant's buckets begin where they begin at full coverage: that is why nobody moves as it grows.

    Added up one by one, as GrowthBook does: `sum` rounds otherwise from Python 3.12 on.
    """
    starts = accumulate(weights, initial=0.0)
    return tuple((start, start + coverage * weight) for start, weight in zip(starts, weights, strict=False))
