"""Releases as rows and folders: listed, activated, and the way back."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, Row, select, update
from sqlalchemy.dialects.postgresql import insert

from app.settings import Settings
from app.storage import audit
from app.storage.database import database_id
from app.storage.release_files import current_id, load_checked, point_to
from app.storage.tables import NOW, releases


def new_release_id(at: datetime | None = None) -> str:
    """`2026-11-22T09-30-00Z-3f2a`: sorts by time, and is a folder's name everywhere."""
    return f"{(at or datetime.now(UTC)):%Y-%m-%dT%H-%M-%SZ}-{secrets.token_hex(2)}"


def register(engine: Engine, release_id: str, manifest: dict[str, Any]) -> None:
    """Lists a release that was written to its folder."""
    with engine.begin() as db:
        statement = insert(releases).values(release_id=release_id, manifest=manifest)
        db.execute(statement.on_conflict_do_nothing())


def activate(engine: Engine, settings: Settings, release_id: str, *, actor: str) -> str | None:
    """Makes the release the one that is served, after loading it once; which one it replaces.

    Every worker swaps within `refresh_seconds`. Raises NotFound, Conflict (another database's), ArtifactError.
    """
    with engine.begin() as db:
        load_checked(settings.releases_dir, release_id, database_id(db))
        before = current_id(settings.releases_dir)
        db.execute(update(releases).where(releases.c.release_id == release_id).values(activated_at=NOW))
        audit.record(
            db,
            actor=actor,
            action="release.activate",
            subject=f"release:{release_id}",
            before={"current": before},
            after={"current": release_id},
        )
        # Last, and inside: a pointer that can't be written leaves no line in the log.
        point_to(settings.releases_dir, release_id)
    return before


def listed(engine: Engine, *, before: str | None = None, limit: int | None = None) -> list[Row[Any]]:
    """Registered releases, newest first. before: only those older than this one, by their ids, which sort by time."""
    statement = select(releases).order_by(releases.c.release_id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(releases.c.release_id < before)
    with engine.connect() as db:
        return list(db.execute(statement))
