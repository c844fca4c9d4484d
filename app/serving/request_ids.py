"""Ids of our own for pages: ULIDs, so that they sort by time."""

from __future__ import annotations

import random
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at once, and no numbers of more than a machine's word: every answer carries two such ids.
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)
_40_BITS = (1 << 40) - 1


def new_request_id() -> str:
    """26 characters: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32.

    No secret. `random` seeds itself from the system, and again in a forked child, so that no two processes count alike.
    """
    now, drawn = time.time_ns() // 1_000_000, random.getrandbits
    return f"{_PAIRS[now >> 40]}{_eight(now & _40_BITS)}{_eight(drawn(40))}{_eight(drawn(40))}"


def _eight(bits: int) -> str:
    """Characters for 40 bits."""
    return f"{_PAIRS[bits >> 30]}{_PAIRS[bits >> 20 & 1023]}{_PAIRS[bits >> 10 & 1023]}{_PAIRS[bits & 1023]}"
