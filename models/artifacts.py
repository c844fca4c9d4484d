"""Release folders: fitted recommenders as JSON and arrays, whole or not there at all.

    manifest.json                 everything about the release, and the SHA-256 of every other file
    content.npy                   float32[n_items, d]
    row_of_position.npy           int64[n_items]
    encoder/parameters.json       encoder/<array>.npy
    <recommender>/parameters.json <recommender>/<array>.npy

A release is written into a hidden folder beside its place, synced, and renamed: readers see all of it or
nothing. Nothing is pickled, and arrays are opened as read-only memory maps, so that workers share them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.contracts import LearnedNextTrack, Parts, Recommender, Scores
from models.data.features import ContentEncoder
from models.next_recipes import LOADS
from models.recipes import RECIPES
from models.training import FittedRelease

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Built = TypeVar("Built")

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "implicit")


class ArtifactError(Exception):
    """A release folder can't be served: says which file and why."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = path
        self.cause = cause


@dataclass(frozen=True, slots=True, eq=False)
class RowMap:
    """Which database row is at which position of the fitted arrays, both ways.

    row_of_position: int64[n_items]
    position_of_row: int32[highest row + 2], -1 where the release does not know the row, and in the last place, which
                     stands for all rows above
    """

    row_of_position: NDArray[np.int64]
    position_of_row: NDArray[np.int32]

    @classmethod
    def of(cls, row_of_position: NDArray[np.integer[Any]]) -> RowMap:
        rows = np.asarray(row_of_position, np.int64)
        position_of_row = np.full(int(rows.max(initial=-1)) + 2, -1, np.int32)
        position_of_row[rows] = np.arange(len(rows), dtype=np.int32)
        return cls(rows, position_of_row)

    def positions_of(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """int32[k]: the rows' positions, -1 for rows that the release does not know."""
        return self.position_of_row.take(rows, mode="clip")


@dataclass(frozen=True, slots=True)
class LoadedRelease:
    """A release as it is served.

    manifest: what `save` wrote: `database_id`, `data_window`, `metrics`, `recommenders`, `versions`, …
    content:  float32[n_items, d], what the encoder said of the items when they were fitted
    next_tracks: what foretells the next track of a session, by name; empty where there was nothing to learn from
    """

    folder: Path
    manifest: Mapping[str, Any]
    encoder: ContentEncoder
    content: Scores
    recommenders: dict[str, Recommender]
    rows: RowMap
    next_tracks: Mapping[str, LearnedNextTrack] = field(default_factory=dict)


def save(
    folder: Path,
    fitted: FittedRelease,
    *,
    database_id: str,
    row_of_position: NDArray[np.integer[Any]],
    data_window: tuple[float, float],
    metrics: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write a release into `folder`, which must not exist yet.

    row_of_position: the database row of each item position
    data_window:     unix seconds of the oldest and newest interaction learned from
    metrics:         JSON values, the leaderboard's say
    versions:        of what the caller wants remembered, beside those of the libraries
    """
    if folder.exists():
        raise ArtifactError(folder, "a release is there already, and releases are never overwritten")
    if len(row_of_position) != len(fitted.content):
        raise ValueError(f"{len(row_of_position)} rows for {len(fitted.content)} item positions")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        _write_parts(unfinished, fitted, np.asarray(row_of_position, np.int64))
        _write_json(
            unfinished / MANIFEST,
            _sealed(
                {
                    "format_version": FORMAT_VERSION,
                    "database_id": database_id,
                    "data_window": list(data_window),
                    "n_items": len(fitted.content),
                    "seed": fitted.seed,
                    "recommenders": list(fitted.recommenders),
                    "next_tracks": list(fitted.next_tracks),
                    "metrics": dict(metrics or {}),
                    "versions": _library_versions() | dict(versions or {}),
                    "files": {name: _sha256(unfinished / name) for name in _files(unfinished)},
                }
            ),
        )
        unfinished.chmod(0o755)
        _sync(unfinished)
        unfinished.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load(folder: Path, *, verify: bool = True) -> LoadedRelease:
    """Open a release; ArtifactError names the file and the cause where it is not whole.

    verify: compare every file with its checksum and look for numbers that are not finite; reads everything once
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest, verify=verify)
    encoder_parts = _read_parts(folder / "encoder", manifest)
    return LoadedRelease(
        folder=folder,
        manifest=manifest,
        encoder=_built(folder / "encoder", lambda: ContentEncoder.from_parts(*encoder_parts)),
        content=_read_array(folder / "content.npy"),
        recommenders=_read_recommenders(folder, manifest),
        rows=RowMap.of(_read_array(folder / "row_of_position.npy")),
        next_tracks=_read_next_tracks(folder, manifest),
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked to be whole and of a format that this code reads."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(folder, "there is no such release")
    if not path.is_file():
        raise ArtifactError(path, "missing; the folder is not a release, or was only half copied")
    manifest = _read_json(path)
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise ArtifactError(path, "not a release's manifest")
    if manifest["format_version"] != FORMAT_VERSION:
        raise ArtifactError(
            path, f"format version {manifest['format_version']!r}, but this code reads {FORMAT_VERSION}: train again"
        )
    if manifest.get("seal") != _seal(manifest):
        raise ArtifactError(path, "changed since it was written: its contents don't match its own checksum")
    return manifest


def _write_parts(folder: Path, fitted: FittedRelease, rows: NDArray[np.int64]) -> None:
    _write_array(folder / "content.npy", fitted.content)
    _write_array(folder / "row_of_position.npy", rows)
    parts = {"encoder": fitted.encoder.parts()}
    parts |= {name: recommender.parts() for name, recommender in fitted.recommenders.items()}
    parts |= {name: recommender.parts() for name, recommender in fitted.next_tracks.items()}
    for name, (parameters, arrays) in parts.items():
        (folder / name).mkdir()
        _write_json(folder / name / "parameters.json", parameters)
        for array_name, array in arrays.items():
            _write_array(folder / name / f"{array_name}.npy", array)


def _write_array(path: Path, array: NDArray[Any]) -> None:
    _refuse_unordered(path, array)
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        _sync_folder(inner)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """The names in a folder survive a crash only once the folder itself is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_files(folder: Path, manifest: Mapping[str, Any], *, verify: bool) -> None:
    for name, checksum in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(path, "missing, though the manifest names it")
        if verify and _sha256(path) != checksum:
            raise ArtifactError(path, "changed since it was written: its checksum is not the manifest's")
        if verify and path.suffix == ".npy":
            _refuse_unordered(path, _read_array(path))


def _read_recommenders(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Recommender]:
    loaded: dict[str, Recommender] = {}
    for name in manifest["recommenders"]:
        if name not in RECIPES:
            raise ArtifactError(folder / name, "this code has no recipe of that name")
        recipe, parts = RECIPES[name], _read_parts(folder / name, manifest)
        if missing := [needed for needed in recipe.needs if needed not in loaded]:
            raise ArtifactError(folder / name, f"needs {', '.join(missing)}, which the release lacks")
        needed = {need: loaded[need] for need in recipe.needs}
        loaded[name] = _built(folder / name, partial(recipe.load, *parts, needed))
    return loaded


def _read_next_tracks(folder: Path, manifest: Mapping[str, Any]) -> dict[str, LearnedNextTrack]:
    """Releases from before there were any name none."""
    loaded: dict[str, LearnedNextTrack] = {}
    for name in manifest.get("next_tracks", ()):
        if name not in LOADS:
            raise ArtifactError(folder / name, "this code has no recipe of that name")
        loaded[name] = _built(folder / name, partial(LOADS[name], *_read_parts(folder / name, manifest), loaded))
    return loaded


def _built(folder: Path, build: Callable[[], Built]) -> Built:
    try:
        return build()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ArtifactError(folder, f"its parts don't fit together ({type(error).__name__}: {error})") from error


def _read_parts(folder: Path, manifest: Mapping[str, Any]) -> Parts:
    prefix = f"{folder.name}/"
    names = [name.removeprefix(prefix) for name in manifest["files"] if name.startswith(prefix)]
    arrays = {name.removesuffix(".npy"): _read_array(folder / name) for name in names if name.endswith(".npy")}
    return Parts(_read_json(folder / "parameters.json"), arrays)


def _read_array(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(path, f"not a readable array ({error})") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(path, f"not readable JSON ({error})") from error


def _refuse_unordered(path: Path, array: NDArray[Any]) -> None:
    """-inf means "no opinion"; a NaN or +inf would come first or nowhere in a ranking."""
    if array.dtype.kind == "f" and len(array) and not float(np.max(array, initial=-np.inf)) < np.inf:
        raise ArtifactError(path, "holds NaN or infinity")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest | {"seal": _seal(manifest)}


def _seal(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without its seal, in one way of writing it."""
    unsealed = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def _library_versions() -> dict[str, str]:
    return {library: metadata.version(library) for library in _LIBRARIES}
