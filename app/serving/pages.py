"""The pages that follow the first: a slate pinned for half an hour, in Redis, under an opaque cursor."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from binascii import b2a_base64
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from app import telemetry
from app.errors import Gone, Invalid, Unavailable
from app.serving.arms import NO_ARM, Arm
from app.serving.breaker import Breaker
from app.serving.exploration import Draw
from app.serving.slate import Run, Shown
from app.storage.kept_json import kept_json
from app.storage.redis_multiplexer import RedisMultiplexer
from models.contracts import Reason

log = logging.getLogger(__name__)

RECENT_BYTES = 40_000_000
"""Of slates that a worker also keeps itself: the next page mostly comes from it, and Redis may be away. As bytes, which
take a fifth of the room, and none of the garbage collector's time."""
FLUSH_SECONDS = 0.05
"""So long slates gather: each trip to Redis costs as much as to encode one."""
RETRY_SECONDS = 0.5
"""After Redis did not take what was to be written."""
SLATES_PER_WRITE = 200
FRESH_SECONDS = 2.0
"""A cursor younger than this may have come before its slate: its reader waits a moment."""

_FOR_ADDRESSES = bytes.maketrans(b"+/", b"-_")
_CURSOR = re.compile(r"[0-9a-f]{8}[A-Za-z0-9_-]{16}", re.ASCII)


class Pinned(NamedTuple):
    """The rest of a slate, and what made it.

    endpoint:  which endpoint answers with it; another one refuses the cursor
    asked:     the query parameters of the first page: the later pages must ask for the same
    given:     rows of the pages already answered
    remaining: items in order, to be filtered by the blocks and deletions of the moment
    user_row:  the user's, when the first page was made; None where the user was unknown or could not be read
    window:    of popularity, where that is what the slate holds; else None
    slate_id:  request id of the first page, where the slate's order was drawn; else None
    draw:      made for the page at hand; not pinned, for it is written down with that page
    arm:       what the variants change, for pages that need more items, whatever runs by then
    """

    endpoint: str
    asked: dict[str, Any]
    route: str
    recommender: str
    release: str | None
    variants: dict[str, str]
    given: tuple[int, ...]
    remaining: Sequence[Shown]
    user_row: int | None = None
    window: str | None = None
    slate_id: str | None = None
    draw: Draw | None = None
    arm: Arm = NO_ARM

    @property
    def owner(self) -> str:
        """The user whose slate it is, "" where it is nobody's: their cached keys are found by it, to be erased."""
        return str(self.asked.get("user_id", ""))


class PageStore:
    """Keeps pinned slates. Writing is buffered, so that a first page pays no second trip to Redis."""

    def __init__(self, cache: redis.asyncio.Redis, *, ttl_seconds: int, breaker: Breaker | None = None) -> None:
        """breaker: shared with whatever else of this worker asks Redis."""
        self._breaker = breaker or Breaker("redis", patience_seconds=1.0)
        self._cache = RedisMultiplexer(cache)
        self._ttl = ttl_seconds
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._unwritten: dict[str, str] = {}
        """Keys in Redis, by cursor; what belongs there is among the recent ones."""
        self._flushing: asyncio.Task[None] | None = None
        self._is_closing = False
        self.refused: str | None = None
        """Why Redis takes no slates though it answers; None while it does."""

    @property
    def unwritten(self) -> int:
        """Slates that wait to be written."""
        return len(self._unwritten)

    def put(self, pinned: Pinned) -> str:
        """The cursor that brings the slate back."""
        cursor = f"{int(time.time()):08x}{_text(_seal(pinned.owner) + os.urandom(9))}"
        self._unwritten[cursor] = _key(cursor, pinned.owner)
        self._remember(cursor, _encode(pinned))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return cursor

    async def get(self, cursor: str, endpoint: str, owner: str = "") -> Pinned:
        """The slate. owner: the user who asks for it, "" where the endpoint answers the same to all.

        Raises Invalid for what was never a cursor of this endpoint and user, Gone for one that has expired, and
        Unavailable where only Redis could tell, and is away.
        """
        if not _CURSOR.fullmatch(cursor):
            raise Invalid.field(("query", "cursor"), "not a cursor of this service; use next_cursor as it came")
        if not self._is_expired(cursor) and _seal_of(cursor) != _text(_seal(owner)):
            raise Invalid.field(("query", "cursor"), f"was not given here for user_id={owner!r}")
        pinned = await self._find(cursor, owner)
        if pinned is None:
            raise Gone(f"cursor {cursor}: expired after {self._ttl} s, or lost; start again without one")
        if pinned.endpoint != endpoint:
            raise Invalid.field(("query", "cursor"), f"belongs to {pinned.endpoint}")
        return pinned

    async def close(self) -> None:
        """Writes what is not written yet, if Redis takes it."""
        self._is_closing = True
        if self._flushing is not None:
            await self._flushing

    def _is_expired(self, cursor: str) -> bool:
        return _age(cursor) > self._ttl

    async def _find(self, cursor: str, owner: str) -> Pinned | None:
        if self._is_expired(cursor):
            return None
        known = self._recent.get(cursor)
        if known is not None:
            return _decode(known)
        # A time of issue ahead of ours is another worker's clock, or forged: neither is worth a longer wait.
        deadline = time.monotonic() + min(FRESH_SECONDS - _age(cursor), FRESH_SECONDS)
        while True:
            raw = await self._asked(_key(cursor, owner))
            if isinstance(raw, bytes):
                return _decode(raw)
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.05)

    async def _asked(self, key: str) -> object:
        if not self._breaker.lets_through():
            raise Unavailable("query.cursor: Redis, which keeps the slate, does not answer; retry")
        since = time.monotonic()
        try:
            _, (raw,) = await self._cache.ask(("GET", key))
        except (RedisError, OSError) as error:
            self._breaker.failed(error, since=since)
            raise Unavailable("query.cursor: Redis, which keeps the slate, does not answer; retry") from error
        self._breaker.answered()
        return raw

    def _remember(self, cursor: str, encoded: bytes) -> None:
        self._recent[cursor] = encoded
        self._recent_bytes += len(encoded)
        while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
            cursor, oldest = self._recent.popitem(last=False)
            self._unwritten.pop(cursor, None)
            self._recent_bytes -= len(oldest)

    async def _flush(self) -> None:
        while self._unwritten:
            await asyncio.sleep(FLUSH_SECONDS)
            if await self._has_written():
                continue
            if self._is_closing:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _has_written(self) -> bool:
        """Whether Redis took some slates. The others are kept for later, so that cursors outlive its absence."""
        if not self._breaker.lets_through():
            return False
        batch, since = dict(islice(self._unwritten.items(), SLATES_PER_WRITE)), time.monotonic()
        try:
            await self._cache.ask(
                *(("SET", key, self._recent[cursor], "EX", self._ttl) for cursor, key in batch.items())
            )
        except ResponseError as error:
            # It is full, say. What it has can be read all the same.
            telemetry.DEPENDENCY_ERRORS.labels("redis").inc()
            self._breaker.answered()
            if self.refused is None:
                log.warning("Redis takes no slates: %s", error)
            self.refused = str(error)
            return False
        except (RedisError, OSError) as error:
            self._breaker.failed(error, since=since)
            return False
        self._breaker.answered()
        self.refused = None
        for cursor in batch:
            self._unwritten.pop(cursor, None)
        return True


def _key(cursor: str, owner: str) -> str:
    """With the user's hash tag, like every key of a user: an erasure finds it by that."""
    return f"segue:page:{{{owner}}}:{cursor}"


def _seal(owner: str) -> bytes:
    """Three bytes, four characters of a cursor, that tell one user's cursors from another's."""
    return blake2b(owner.encode("utf-8", "replace"), digest_size=3).digest()


def _text(raw: bytes) -> str:
    """Four characters for each three bytes, such as may stand in an address."""
    return b2a_base64(raw, newline=False).translate(_FOR_ADDRESSES).decode()


def _seal_of(cursor: str) -> str:
    return cursor[8:12]


def _age(cursor: str) -> float:
    """Seconds since it was issued; negative where that was elsewhere, by a clock ahead of ours."""
    return time.time() - int(cursor[:8], 16)


def _encode(pinned: Pinned) -> bytes:
    kept = pinned._asdict() | {"remaining": [], "runs": _runs(pinned.remaining)}
    del kept["draw"]
    if pinned.arm is NO_ARM:
        del kept["arm"]
    return kept_json(kept)


def _runs(items: Sequence[Shown]) -> list[tuple[Any, ...]]:
    """Items one after the other that differ in nothing but row and score: what they share, the rows, the scores."""
    if isinstance(items, Run):
        return [(items.source, False, *items.reason, None, items.rows, items.scores)]
    runs: list[tuple[Any, ...]] = []
    for (source, promoted, reason, propensity), run in groupby(items, _BUT_ROW_AND_SCORE):
        rows, scores, *_ = zip(*run, strict=True)
        runs.append((source, promoted, *reason, propensity, rows, scores))
    return runs


_BUT_ROW_AND_SCORE = itemgetter(slice(2, None))


def _decode(raw: bytes) -> Pinned:
    fields = orjson.loads(raw)
    # What a version without runs, or without propensities, has pinned is still good.
    remaining = tuple(
        Shown(row, score, source, promoted, Reason(code, seed), *propensity)
        for row, score, source, promoted, code, seed, *propensity in fields["remaining"]
    ) + tuple(
        Shown(row, score, source, promoted, Reason(code, seed), propensity)
        for source, promoted, code, seed, propensity, rows, scores in fields.pop("runs", ())
        for row, score in zip(rows, scores, strict=True)
    )
    arm = Arm(**fields["arm"]) if "arm" in fields else NO_ARM
    return Pinned(**{**fields, "given": tuple(fields["given"]), "remaining": remaining, "arm": arm})
