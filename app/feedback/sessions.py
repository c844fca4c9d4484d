"""Listening sessions in Redis: what was heard in each, what it was given, and a next track that is given once.

Two keys per session. `segue:session:{user_id}:<digest>` is the session, and carries the user's hash tag like every key
of a user; so does `segue:sessions:{user_id}`, the list of a user's sessions with when each expires.
`segue:session-of:<digest>` says whose it is, by a digest that names nobody, so that another user's call, and one that
ends a session without naming its user, can be answered. It and the session may be on different servers of a Redis
Cluster: what ties them is the session's *life*, a random word that both hold; a session of another life counts as none.

Which tracks are given is decided by one script on the server (docs/decisions/0020): whoever calls at the same time gets
others.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha1
from typing import Any, NamedTuple

import numpy as np
import redis.asyncio
from numpy.typing import NDArray
from redis.exceptions import ResponseError

from app.storage.redis import VERSIONS_KEY
from app.storage.redis_multiplexer import Answer as Reply
from app.storage.redis_multiplexer import RedisMultiplexer, mapping
from models.membership import is_among

SESSION_KEYS = "segue:session:"
LISTENS_KEPT = 500
"""The newest of a session; models look at fewer."""
ANSWERS_KEPT = 64
"""So many of a session's latest calls can be sent again and get the same tracks."""

LISTEN = np.dtype([("row", "<i4"), ("fraction", "<f4"), ("at", "<f8")])
CANDIDATE = np.dtype(
    [("row", "<i4"), ("score", "<f4"), ("propensity", "<f4"), ("role", "u1"), ("name", "u1"), ("promoted", "?"),
     ("unused", "u1")]
)  # fmt: skip
"""propensity: NaN where the track was not drawn. role: who gave it (session_rules.Role). name: of its source, by its
place in the answer's `about`."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a session heard and was given, oldest first.

    life:    another each time that a session of this id begins
    listens: LISTEN[n], the newest LISTENS_KEPT
    met:     int32[m], rows that were given or listened to
    roles:   uint8[m], who gave each; 0 for what the listener chose
    given:   how many tracks it was given, ever
    """

    life: str
    listens: NDArray[np.void] = field(default_factory=lambda: np.empty(0, LISTEN))
    met: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    roles: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    given: int = 0

    @property
    def is_empty(self) -> bool:
        return not len(self.met)

    def with_listen(self, listen: NDArray[np.void]) -> Session:
        """listen: LISTEN[k], behind the others; a row that was not met before is met now."""
        if not len(listen):
            return self
        listens, fresh = _joined(self.listens, listen)[-LISTENS_KEPT:], listen["row"]
        fresh = fresh[~is_among(fresh, self.met)]
        if not len(fresh):
            return Session(self.life, listens, self.met, self.roles, self.given)
        met, roles = np.concatenate([self.met, fresh]), np.concatenate([self.roles, np.zeros(len(fresh), np.uint8)])
        return Session(self.life, listens, met, roles, self.given)

    def with_given(self, tracks: NDArray[np.void], *, length: int) -> Session:
        """tracks: CANDIDATE[k], given now; the newest `length` of all that was met are kept."""
        met = np.concatenate([self.met, tracks["row"]])[-length:]
        roles = np.concatenate([self.roles, tracks["role"]])[-length:]
        return Session(self.life, self.listens, met, roles, self.given + len(tracks))

    def role_of_last(self) -> int:
        """Who gave the track that was listened to last; 0 without one."""
        if not len(self.listens):
            return 0
        places = (self.met == self.listens["row"][-1]).nonzero()[0]
        return int(self.roles[places[-1]]) if len(places) else 0


def _joined(before: NDArray[np.void], after: NDArray[np.void]) -> NDArray[np.void]:
    """Both of one dtype, which `np.concatenate` would first make sure of field by field."""
    joined = np.empty(len(before) + len(after), before.dtype)
    joined[: len(before)], joined[len(before) :] = before, after
    return joined


class Found(NamedTuple):
    """What Redis knows of a session.

    session:  None where it belongs to another user
    server:   run id of the server that answered
    is_known: whether the session itself was there, and not only room for it
    ended_at: unix seconds when an earlier session of this id was ended on purpose; 0: none was, lately
    versions: as every request reads them
    """

    session: Session | None
    server: str
    is_known: bool
    ended_at: float
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """What a call wants of its session.

    listens:    LISTEN[k], to be appended
    met, roles: int32[j], uint8[j]: what else it had met that Redis may not know of
    candidates: CANDIDATE[c], best first
    wanted:     how many of them
    again_from: from this place on, candidates may have been met before
    is_final:   take fewer than wanted where there are no more; else nothing is changed
    answer_id:  of the call, "" where it can't come again
    about:      what else is to be remembered of the answer
    """

    candidates: NDArray[np.void]
    wanted: int
    again_from: int
    is_final: bool
    about: bytes
    answer_id: str = ""
    listens: NDArray[np.void] = field(default_factory=lambda: np.empty(0, LISTEN))
    met: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    roles: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


class Given(NamedTuple):
    """What a call got.

    first_position: of the first track among all that the session was given, from 1
    tracks:         CANDIDATE[k]
    is_repeated:    the same call was answered before, with this
    """

    first_position: int
    about: bytes
    tracks: NDArray[np.void]
    is_repeated: bool


CLAIM = """
local key, life, id, ttl = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local listens, more, more_roles, candidates = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local wanted, again_from, is_final = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10] == '1'
local answer_id, about, most_listens, most_met = ARGV[11], ARGV[12], tonumber(ARGV[13]), tonumber(ARGV[14])
local answers_kept, now = tonumber(ARGV[15]), tonumber(redis.call('TIME')[1])
local list, digest = KEYS[2], ARGV[16]
redis.call('ZADD', list, now + ttl, digest)
if redis.call('PTTL', list) < 1000 * ttl then redis.call('EXPIRE', list, ttl) end
if redis.call('HGET', key, 'life') ~= life then
  redis.call('DEL', key)
  redis.call('HSET', key, 'life', life, 'id', id)
  redis.call('EXPIRE', key, ttl)
  redis.call('ZREMRANGEBYSCORE', list, '-inf', now - 1)
end
if answer_id ~= '' then
  local known = redis.call('HGET', key, 'a' .. answer_id)
  if known then
    redis.call('EXPIRE', key, ttl)
    return {1, known}
  end
end
local met, roles = redis.call('HGET', key, 'met') or '', redis.call('HGET', key, 'roles') or ''
local function is_met(row)
  local at = string.find(met, row, 1, true)
  while at and (at - 1) % 4 ~= 0 do at = string.find(met, row, at + 1, true) end
  return at
end
local function meet(row, role)
  met, roles = met .. row, roles .. role
end
local regained = 0
for i = 1, #more, 4 do
  local row, role = string.sub(more, i, i + 3), string.sub(more_roles, (i + 3) / 4, (i + 3) / 4)
  if not is_met(row) then
    meet(row, role)
    if role ~= string.char(0) then regained = regained + 1 end
  end
end
local heard = redis.call('HGET', key, 'listens') or ''
for i = 1, #listens, 16 do
  local listen, row = string.sub(listens, i, i + 15), string.sub(listens, i, i + 3)
  if not is_met(row) then meet(row, string.char(0)) end
  if not string.find(heard, listen, 1, true) then heard = heard .. listen end
end
local taken = {}
for i = 1, #candidates, 16 do
  if #taken == wanted then break end
  local row = string.sub(candidates, i, i + 3)
  if (i - 1) / 16 >= again_from or not is_met(row) then
    table.insert(taken, string.sub(candidates, i, i + 15))
    meet(row, string.sub(candidates, i + 12, i + 12))
  end
end
if #taken < wanted and not is_final then return {2, ''} end
if #listens > 0 then redis.call('HSET', key, 'listens', string.sub(heard, -16 * most_listens)) end
redis.call('HSET', key, 'met', string.sub(met, -4 * most_met), 'roles', string.sub(roles, -most_met))
local given = redis.call('HINCRBY', key, 'given', #taken + regained) - #taken
local answer = given .. '\\n' .. about .. '\\n' .. table.concat(taken)
if answer_id ~= '' then
  local ids = (redis.call('HGET', key, 'answers') or '') .. answer_id
  if #ids > 32 * answers_kept then
    redis.call('HDEL', key, 'a' .. string.sub(ids, 1, 32))
    ids = string.sub(ids, 33)
  end
  redis.call('HSET', key, 'answers', ids, 'a' .. answer_id, answer)
end
redis.call('EXPIRE', key, ttl)
return {0, answer}
"""
_CLAIM_SHA = sha1(CLAIM.encode(), usedforsecurity=False).hexdigest()


class SessionStore:
    """Reads and changes sessions for one event loop. Every method raises RedisError or OSError where Redis is away."""

    def __init__(self, cache: redis.asyncio.Redis, *, timeout_seconds: int, length: int) -> None:
        """timeout_seconds: without a call for so long, a session is over; length: tracks that it remembers."""
        self._cache = RedisMultiplexer(cache)
        self._timeout = timeout_seconds
        self._length = length
        # As they were told last, and what that means: they seldom change.
        self._versions: tuple[tuple[str, Any], Mapping[str, str]] = ("", None), {}

    async def find(self, user_id: str, session_id: str) -> Found:
        """The session, and the versions of the moment, in one trip; where there is none, one begins, in a second."""
        digest = digest_of(session_id)
        owner, seal = _owner_key(digest), _seal(digest, user_id)
        asked = ("GET", owner), ("HMGET", session_key(user_id, digest), "life", "listens", "met", "roles", "given")
        server, (versions, told, state) = await self._cache.ask(("HGETALL", VERSIONS_KEY), *asked)
        known = self._known_versions(versions, server)
        if not told:
            offered = _Owner(seal, new_life(), 0.0).encoded()
            # Another call may be quicker: then it is theirs.
            set_new = ("SET", owner, offered, "NX", "EX", self._timeout)
            server, (_, told, state) = await self._cache.ask(set_new, *asked)
            told = told or offered.encode()
        owned = _Owner.of(told)
        if not hmac.compare_digest(owned.seal, seal):
            return Found(None, server, False, 0.0, known)
        if owned.is_over:
            owned = replace(owned, is_over=False)
            await self._cache.ask(("SET", owner, owned.encoded(), "EX", self._timeout))
        is_known = state[0] == owned.life.encode()
        session = _decoded(owned.life, state[1:]) if is_known else Session(owned.life)
        return Found(session, server, is_known, owned.ended_at, known)

    def _known_versions(self, told: Any, server: str) -> Mapping[str, str]:
        if self._versions[0] != (server, told):
            self._versions = (server, told), _versions(mapping(told), server)
        return self._versions[1]

    async def claim(self, user_id: str, session_id: str, life: str, claim: Claim) -> Given | None:
        """Takes tracks that nobody else was given; None where there are not enough, and nothing has changed."""
        digest = digest_of(session_id)
        arguments = (
            life, session_id, self._timeout,
            claim.listens.tobytes(), claim.met.astype("<i4").tobytes(), claim.roles.tobytes(),
            claim.candidates.tobytes(), claim.wanted, claim.again_from, "1" if claim.is_final else "0",
            claim.answer_id, claim.about, LISTENS_KEPT, self._length, ANSWERS_KEPT, digest,
        )  # fmt: skip
        told = await self._run((session_key(user_id, digest), list_key(user_id)), arguments, _owner_key(digest))
        outcome, answer = told.replies[0]
        return None if outcome == 2 else decoded_answer(answer, is_repeated=outcome == 1)

    async def end(self, session_id: str) -> bool:
        """Ends it; whether there was one. What it held expires by itself: nothing finds it any more."""
        key = _owner_key(digest_of(session_id))
        _, (told,) = await self._cache.ask(("GET", key))
        if not told or (owned := _Owner.of(told)).is_over:
            return False
        ended = _Owner(owned.seal, new_life(), time.time(), is_over=True)
        await self._cache.ask(("SET", key, ended.encoded(), "EX", self._timeout))
        return True

    async def _run(self, keys: tuple[str, str], arguments: Sequence[str | bytes | int], owner: str) -> Reply:
        # Whoever is called for goes on: a session that was ended meanwhile does not come back by this.
        longer = ("EXPIRE", owner, self._timeout)
        try:
            return await self._cache.ask(("EVALSHA", _CLAIM_SHA, 2, *keys, *arguments), longer)
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self._cache.ask(("EVAL", CLAIM, 2, *keys, *arguments), longer)


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose a session is. ended_at: unix seconds when the one before was ended; is_over: and none has begun since."""

    seal: str
    life: str
    ended_at: float
    is_over: bool = False

    def encoded(self) -> str:
        return f"{self.seal}:{self.life}:{self.ended_at:.3f}:{int(self.is_over)}"

    @classmethod
    def of(cls, encoded: bytes) -> _Owner:
        seal, life, ended_at, is_over = encoded.decode().split(":")
        return cls(seal, life, float(ended_at), is_over == "1")


def session_key(user_id: str, digest: str) -> str:
    """With the user's hash tag. The session's id is in it as a digest, for ids may hold braces."""
    return f"{SESSION_KEYS}{{{user_id}}}:{digest}"


def list_key(user_id: str) -> str:
    """Of the user's sessions: digests, by the unix second in which each expires."""
    return f"segue:sessions:{{{user_id}}}"


def _owner_key(digest: str) -> str:
    return f"segue:session-of:{digest}"


def digest_of(text: str) -> str:
    """32 hexadecimal digits."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def _seal(digest: str, user_id: str) -> str:
    return digest_of(f"{digest}:{user_id}")


def new_life() -> str:
    return secrets.token_hex(8)


def decoded_answer(answer: bytes, *, is_repeated: bool) -> Given:
    given, about, tracks = answer.split(b"\n", 2)
    return Given(int(given) + 1, about, np.frombuffer(tracks, CANDIDATE), is_repeated)


def _decoded(life: str, fields: Sequence[Any]) -> Session:
    listens, met, roles, given = fields
    return Session(
        life,
        np.frombuffer(listens or b"", LISTEN),
        np.frombuffer(met or b"", "<i4"),
        np.frombuffer(roles or b"", np.uint8),
        int(given or 0),
    )


def _versions(raw: Mapping[bytes, bytes], server: str) -> Mapping[str, str]:
    """What another life of the server left is not looked at: it may be old."""
    known = {name.decode(): version.decode() for name, version in raw.items()}
    return known if known.get("server") == server else {"server": server}
