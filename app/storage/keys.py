"""API keys: hashed at rest, compared in constant time, revocable while the service runs."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, insert, select, update

from app.errors import Invalid, NotFound
from app.settings import Settings
from app.storage import audit, tables

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the service knows it: never the key itself."""

    name: str
    digest: bytes
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that opens something now.

    is_open: no key was ever made, so that nobody needs one; the service then stays on loopback. Revoking the last
    key leaves a closed door, not an open one.
    """

    keys: tuple[ApiKey, ...]
    is_open: bool

    def find(self, presented: str) -> ApiKey | None:
        """The key with this text. Always looks at all of them, so that time tells nothing."""
        digest, found = digest_of(presented), None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def digest_of(key: str) -> bytes:
    """sha256: keys are random and long, so a slow password hash would protect nothing more."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def configured(settings: Settings) -> tuple[ApiKey, ...]:
    """The first keys, from the environment. Admin opens everything."""
    given = (
        ("SEGUE_READ_KEY", settings.read_key, {"read"}),
        ("SEGUE_WRITE_KEY", settings.write_key, {"write"}),
        ("SEGUE_ADMIN_KEY", settings.admin_key, set(SCOPES)),
    )
    return tuple(
        ApiKey(name, digest_of(key.get_secret_value()), frozenset(scopes)) for name, key, scopes in given if key
    )


def load(db: Connection, settings: Settings) -> KeyRing:
    """The keys of the environment and those of the table that were not revoked."""
    rows = db.execute(select(tables.api_keys).order_by(tables.api_keys.c.id)).all()
    stored = tuple(
        ApiKey(row.name, bytes(row.key_hash), frozenset(row.scopes)) for row in rows if row.revoked_at is None
    )
    keys = configured(settings) + stored
    return KeyRing(keys, is_open=not keys and not rows)


def create(db: Connection, *, actor: str, name: str, scopes: Iterable[str]) -> str:
    """Stores a new key and returns its text, which is shown this once.

    Raises Invalid for an unknown scope or none at all.
    """
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise Invalid(f"scopes: {unknown or 'none given'}; known scopes are {', '.join(SCOPES)}")
    granted = list(SCOPES) if "admin" in wanted else wanted
    key = f"segue_{secrets.token_urlsafe(32)}"
    db.execute(insert(tables.api_keys).values(name=name, scopes=granted, key_hash=digest_of(key)))
    audit.record(db, actor=actor, action="key.create", subject=f"key:{name}", after={"scopes": granted})
    _bump(db)
    return key


def revoke(db: Connection, *, actor: str, name: str) -> int:
    """Revokes every key of this name; how many. Raises NotFound where there is none."""
    table = tables.api_keys
    statement = update(table).where(table.c.name == name, table.c.revoked_at.is_(None)).values(revoked_at=tables.NOW)
    revoked = db.execute(statement).rowcount
    if not revoked:
        raise NotFound(f"no active API key is named {name!r}")
    audit.record(db, actor=actor, action="key.revoke", subject=f"key:{name}", before={"keys": revoked})
    _bump(db)
    return revoked


def _bump(db: Connection) -> None:
    """Workers load the keys again when this version differs; `catalog.versions`, which stands above, reads it."""
    table = tables.versions
    db.execute(update(table).where(table.c.name == "keys").values(seq=table.c.seq + 1))
