"""Releases on disk: folders, and the pointer file that names the one to serve."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import numpy as np

from app.errors import Conflict, NotFound, Unavailable
from models import artifacts
from models.artifacts import ArtifactError, LoadedRelease
from models.contracts import Query

POINTER = "current"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_LONGEST_BYTES = 128

State = frozenset[tuple[str, int, int]]
"""Name, size and time of change of each file of a folder."""


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
    """The release that the pointer names; None where there is no pointer, or it is damaged."""
    try:
        return pointed(releases_dir)
    except ArtifactError:
        return None


def pointed(releases_dir: Path) -> str:
    """The release that the pointer names. Raises ArtifactError where it is missing or damaged."""
    path = releases_dir / POINTER
    try:
        with path.open("rb") as file:
            name = file.read(_LONGEST_BYTES).decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise ArtifactError(path, "missing, so no release is named") from None
    except OSError as error:
        raise ArtifactError(path, f"not readable ({error.strerror})") from error
    # Else a pointer could name any folder of the machine.
    if not _NAME.fullmatch(name):
        raise ArtifactError(path, f"holds {name!r}, which is no name of a release")
    return name


def state_of(releases_dir: Path, release_id: str) -> State:
    """Tells whether a release's files were changed; empty where the folder is gone. Reads none of them, and never
    fails: what can't be looked at is not there."""
    return frozenset(_states(releases_dir / release_id))


def _states(folder: Path) -> Iterator[tuple[str, int, int]]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _states(Path(entry.path))
            else:
                stat = entry.stat()
                yield entry.path, stat.st_size, stat.st_mtime_ns


def point_to(releases_dir: Path, release_id: str) -> None:
    """Names the current release, atomically: readers see the old name or the new one.

    Raises Unavailable where the disk is full, say; the old name stays then.
    """
    temporary = releases_dir / f"{POINTER}.{secrets.token_hex(4)}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(release_id)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(releases_dir / POINTER)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Unavailable(f"{releases_dir / POINTER} can't be written: {error.strerror}") from error
