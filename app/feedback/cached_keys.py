"""Every key in Redis that names a user, to be deleted when the user is erased.

Each carries the user's hash tag, `{user_id}`, whatever it holds: views under every version of the keys, pinned slates,
listening sessions and the list of them. They are found by a scan of all keys, a thousand at a time: 60 ms of Redis'
time for 100,000 keys, of which others wait for 0.6 ms at most; erasures are rare.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from itertools import islice

from redis import Redis

from app.catalog.users import hash_of

KEYS_PER_CALL = 1_000
_SPECIAL = re.compile(r"([\\*?\[\]^])")
_TAG = re.compile(rb"\{(.+)\}", re.DOTALL)


def keys_of(cache: Redis, user_id: str) -> set[bytes]:
    """Those that carry this user's tag. Raises RedisError."""
    literally = _SPECIAL.sub(r"\\\1", user_id)
    return set(_found(cache, f"segue:*{{{literally}}}*", {hash_of(user_id)}))


def delete_keys_of(cache: Redis, user_id: str) -> int:
    """Deletes the keys that carry this user's tag; how many. Raises RedisError."""
    return _delete(cache, iter(keys_of(cache, user_id)))


def delete_keys_of_erased(
    cache: Redis, hashes: Collection[bytes], *, but_of: Callable[[Collection[str]], Collection[str]]
) -> int:
    """The same for users of whom nothing is left but `hash_of` their ids. Raises RedisError.

    but_of: asked with the users whose keys were found; those whom it answers keep them
    """
    return _delete(cache, _found(cache, "segue:*{*}*", hashes), but_of)


def _found(cache: Redis, pattern: str, hashes: Collection[bytes]) -> Iterator[bytes]:
    keys: Iterator[bytes] = cache.scan_iter(pattern, count=KEYS_PER_CALL)
    return (key for key in keys if hash_of(_tag_of(key)) in hashes)


def _delete(
    cache: Redis, keys: Iterator[bytes], but_of: Callable[[Collection[str]], Collection[str]] = lambda _: ()
) -> int:
    deleted = 0
    while some := list(islice(keys, KEYS_PER_CALL)):
        kept = but_of({_tag_of(key) for key in some})
        if gone := [key for key in some if _tag_of(key) not in kept]:
            deleted += int(cache.unlink(*gone))
    return deleted


def _tag_of(key: bytes) -> str:
    """The user's id; "" without one."""
    tag = _TAG.search(key)
    return tag[1].decode("utf-8", "replace") if tag else ""
