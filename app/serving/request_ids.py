"""Ids of our own for pages: ULIDs, so that they sort by time."""

from __future__ import annotations

import random
import time

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters at once: every answer carries such an id.
_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)


def new_request_id() -> str:
    """26 characters: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32.

    No secret. `random` seeds itself from the system, and again in a forked child, so that no two processes count alike.
    """
    number = (time.time_ns() // 1_000_000) << 80 | random.getrandbits(80)
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])
