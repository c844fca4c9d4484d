"""Users as the catalogue knows them: attributes, preferred categories, and whether they were erased."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from sqlalchemy import Connection


def hash_of(user_id: str) -> bytes:
    """What a tombstone keeps of an erased user's id."""
    return sha256(user_id.encode()).digest()


def erased_at(db: Connection, user_ids: Sequence[str]) -> dict[str, datetime]:
    """When each of these users was erased, for those who were.

    The tombstone stays for good, also where the user was created anew on purpose: what such a user did before that
    moment never comes back, and without a row in `users` nothing about the user is stored at all.
    """
    by_hash = {hash_of(user_id): user_id for user_id in user_ids}
    statement = "SELECT user_hash, erased_at FROM tombstones WHERE user_hash = ANY(%(hashes)s)"
    found = db.exec_driver_sql(statement, {"hashes": list(by_hash)})
    return {by_hash[bytes(user_hash)]: at for user_hash, at in found}
