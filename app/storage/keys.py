"""API keys: hashed at rest, compared in constant time, revocable and replaceable while the service runs."""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from app.errors import Invalid, NotFound
from app.settings import Settings
from app.storage import audit, tables

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the service knows it: never the key itself.

    ends_at: monotonic seconds of this process, by Postgres' clock; inf where no other key replaced it
    """

    name: str
    digest: bytes
    scopes: frozenset[str]
    ends_at: float = math.inf


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that opens something now.

    is_open: no key was ever made, so that nobody needs one; the service then stays on loopback. Revoking the last
    key leaves a closed door, not an open one.
    """

    keys: tuple[ApiKey, ...]
    is_open: bool

    def find(self, presented: str) -> ApiKey | None:
        """The key with this text, unless it is over. Always looks at all of them, so that time tells nothing."""
        digest, found = digest_of(presented), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found if found is not None and time.monotonic() < found.ends_at else None


def digest_of(key: str) -> bytes:
    """sha256: keys are random and long, so a slow password hash would protect nothing more."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


_NAMES = ("SEGUE_READ_KEY", "SEGUE_WRITE_KEY", "SEGUE_ADMIN_KEY")


def configured(settings: Settings) -> tuple[ApiKey, ...]:
    """The first keys, from the environment. Admin opens everything."""
    values = (settings.read_key, settings.write_key, settings.admin_key)
    scopes_of: tuple[tuple[str, ...], ...] = (("read",), ("write",), SCOPES)
    given = zip(_NAMES, values, scopes_of, strict=True)
    return tuple(
        ApiKey(name, digest_of(key.get_secret_value()), frozenset(scopes)) for name, key, scopes in given if key
    )


def load(db: Connection, settings: Settings) -> KeyRing:
    """The keys of the environment and those of the table that were neither revoked nor are over."""
    table = tables.api_keys
    # Before the statement, so that no key lives longer here than in Postgres.
    asked_at = time.monotonic()
    left = func.extract("epoch", table.c.expires_at - func.clock_timestamp()).label("left")
    stored = [_api_key(row, asked_at) for row in db.execute(select(table, left).where(_ACTIVE).order_by(table.c.id))]
    keys = (*configured(settings), *stored)
    is_open = not keys and db.execute(select(table.c.id).limit(1)).first() is None
    return KeyRing(keys, is_open=is_open)


def _api_key(row: Row[Any], asked_at: float) -> ApiKey:
    ends_at = math.inf if row.left is None else asked_at + float(row.left)
    return ApiKey(row.name, bytes(row.key_hash), frozenset(row.scopes), ends_at)


_ACTIVE = tables.api_keys.c.revoked_at.is_(None) & or_(
    tables.api_keys.c.expires_at.is_(None), tables.api_keys.c.expires_at > func.clock_timestamp()
)


def create(db: Connection, *, actor: str, name: str, scopes: Iterable[str]) -> str:
    """Stores a new key and returns its text, which is shown this once.

    Raises Invalid for an unknown scope or none at all.
    """
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise Invalid(f"scopes: {unknown or 'none given'}; known scopes are {', '.join(SCOPES)}")
    granted = list(SCOPES) if "admin" in wanted else wanted
    key = _stored(db, name, granted)
    audit.record(db, actor=actor, action="key.create", subject=f"key:{name}", after={"scopes": granted})
    _bump(db)
    return key


@dataclass(frozen=True, slots=True)
class Rotated:
    """A key in the place of others: its text, how many it replaces, and until when those are good."""

    key: str
    replaced: int
    good_until: datetime


def rotate(db: Connection, *, actor: str, name: str, grace: timedelta) -> Rotated:
    """Stores a new key of this name and scopes; those that it replaces end after `grace`, or sooner if they did.

    Raises NotFound where there is none, Invalid for a key of the environment, which changes there.
    """
    if name in _NAMES:
        raise Invalid(f"{name} is a key of the environment: set another value there and restart the service")
    table = tables.api_keys
    # Two rotations of one name take turns: else both would replace the same keys, and both new ones would stay.
    db.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"segue.keys {name}"))))
    active = db.execute(select(table.c.id, table.c.scopes).where(table.c.name == name, _ACTIVE)).all()
    if not active:
        raise _no_active_key(name)
    ends_at = func.least(table.c.expires_at, func.clock_timestamp() + grace)
    replaced = update(table).where(table.c.id.in_([row.id for row in active])).values(expires_at=ends_at)
    good_until = max(db.execute(replaced.returning(table.c.expires_at)).scalars())
    scopes = sorted({scope for row in active for scope in row.scopes})
    key = _stored(db, name, scopes)
    audit.record(
        db,
        actor=actor,
        action="key.rotate",
        subject=f"key:{name}",
        before={"keys": len(active)},
        after={"scopes": scopes, "old_ones_good_until": good_until.isoformat()},
    )
    _bump(db)
    return Rotated(key, len(active), good_until)


def revoke(db: Connection, *, actor: str, name: str) -> int:
    """Revokes every key of this name; how many. Raises NotFound where there is none."""
    table = tables.api_keys
    revoked = db.execute(update(table).where(table.c.name == name, _ACTIVE).values(revoked_at=tables.NOW)).rowcount
    if not revoked:
        raise _no_active_key(name)
    audit.record(db, actor=actor, action="key.revoke", subject=f"key:{name}", before={"keys": revoked})
    _bump(db)
    return revoked


def _stored(db: Connection, name: str, scopes: Sequence[str]) -> str:
    key = f"segue_{secrets.token_urlsafe(32)}"
    db.execute(insert(tables.api_keys).values(name=name, scopes=list(scopes), key_hash=digest_of(key)))
    return key


def _no_active_key(name: str) -> NotFound:
    return NotFound(f"no active API key is named {name!r}")


def _bump(db: Connection) -> None:
    """Workers load the keys again when this version differs; `catalog.versions`, which stands above, reads it."""
    table = tables.versions
    db.execute(update(table).where(table.c.name == "keys").values(seq=table.c.seq + 1))
