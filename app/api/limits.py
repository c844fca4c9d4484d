"""How often a key may ask, and how many wrong keys an address may try.

Both are kept by each worker for itself, in memory: nothing to wait for, nothing that Redis could take away, and a
microsecond per request. With several workers a client with several connections so gets up to that many times the rate;
one connection always stays with one worker. (The package `limits` does the same from 20 times the code, and slower.)
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict

from app import telemetry
from app.errors import TooMany
from app.storage.keys import ApiKey, digest_of

GUESSES = 20
"""Different wrong keys that an address may try within GUESS_SECONDS. The same one again is a client that was not told
of a new key, and no guess."""
GUESS_SECONDS = 60.0
ADDRESSES = 10_000
"""Of so many the guesses are remembered."""


class Limits:
    """The limits of one worker."""

    def __init__(self, requests_per_second: float) -> None:
        self.rates = KeyRates(requests_per_second)
        self.guesses = Guesses()


class KeyRates:
    """A bucket of tokens for each key: it holds those of one second, and at least one."""

    def __init__(self, requests_per_second: float) -> None:
        """requests_per_second: 0 for no limit."""
        self._per_second = requests_per_second
        self._most = max(1.0, requests_per_second)
        self._buckets: dict[bytes, tuple[float, float]] = {}

    def take(self, key: ApiKey, now: float | None = None) -> None:
        """One request of this key, at `now` (monotonic seconds). Raises TooMany."""
        if not self._per_second:
            return
        now = time.monotonic() if now is None else now
        left, at = self._buckets.get(key.digest, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        if left < 1:
            telemetry.REFUSED.labels("rate").inc()
            raise TooMany(
                f"key {key.name!r}: more than {self._per_second:g} requests a second (SEGUE_RATE_LIMIT)",
                retry_after=math.ceil((1 - left) / self._per_second),
                limit=self._per_second,
            )
        self._buckets[key.digest] = (left - 1, now)


class Guesses:
    """The wrong keys of each address, as digests.

    A right key always opens: several clients may share an address, and nobody may lock the others out.
    """

    def __init__(self) -> None:
        self._tried: OrderedDict[str, tuple[float, set[bytes]]] = OrderedDict()

    def note(self, address: str, wrong: str, now: float | None = None) -> None:
        """This key was wrong. Raises TooMany where the address has tried too many others lately."""
        now = time.monotonic() if now is None else now
        since, tried = self._tried.get(address, (now, set()))
        if now - since >= GUESS_SECONDS:
            since, tried = now, set()
        guess = digest_of(wrong)
        if len(tried) >= GUESSES and guess not in tried:
            telemetry.REFUSED.labels("guesses").inc()
            left = math.ceil(since + GUESS_SECONDS - now)
            raise TooMany(f"{GUESSES} different wrong keys came from this address", retry_after=left)
        tried.add(guess)
        self._tried[address] = (since, tried)
        self._tried.move_to_end(address)
        if len(self._tried) > ADDRESSES:
            self._tried.popitem(last=False)
