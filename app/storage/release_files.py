"""Releases on disk: folders, and the pointer file that names the one to serve."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from uuid import UUID

import numpy as np

from app.errors import Conflict, NotFound
from models import artifacts
from models.artifacts import ArtifactError, LoadedRelease
from models.contracts import Query

POINTER = "current"


def load_checked(releases_dir: Path, release_id: str, database_id: UUID) -> LoadedRelease:
    """Loads a release and asks each of its recommenders one question.

    Raises NotFound, ArtifactError for a damaged one, Conflict for one made from another database.
    """
    folder = releases_dir / release_id
    if not folder.is_dir():
        raise NotFound(f"release {release_id!r} does not exist")
    loaded = artifacts.load(folder)
    origin = loaded.manifest["database_id"]
    if origin != str(database_id):
        raise Conflict(f"release {release_id!r} was trained on another database ({origin})")
    for name, recommender in loaded.recommenders.items():
        candidates = recommender.recommend(Query(limit=10, at=time.time()))
        if not np.isfinite(candidates.scores).all():
            raise ArtifactError(folder / name, "answers with scores that are not finite")
    return loaded


def current_id(releases_dir: Path) -> str | None:
    """The release that the pointer names, None where nothing was ever activated."""
    try:
        return (releases_dir / POINTER).read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None


def point_to(releases_dir: Path, release_id: str) -> None:
    """Names the current release, atomically: readers see the old name or the new one."""
    temporary = releases_dir / f"{POINTER}.{secrets.token_hex(4)}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(release_id)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(releases_dir / POINTER)
