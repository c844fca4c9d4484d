"""The release that is served: found by a pointer file, loaded aside, checked, then swapped in one reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app import telemetry
from app.storage.release_files import current_id, load_checked
from models.artifacts import LoadedRelease, RowMap
from models.contracts import Recommender
from models.data.dataset import ItemTable

log = logging.getLogger(__name__)

Rows = NDArray[np.int32]
MAX_NEW_ITEMS = 20_000
"""New items that content recommenders speak of between two trainings; more wait for the next release."""


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release and the items that arrived since, as recommenders over one set of positions.

    rows: the item row behind each of the n + m positions, and the way back
    """

    release_id: str | None
    recommenders: Mapping[str, Recommender]
    rows: RowMap
    loaded: LoadedRelease | None = None
    new_content: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @classmethod
    def of(cls, release_id: str, loaded: LoadedRelease) -> ServedRelease:
        return cls(release_id, loaded.recommenders, loaded.rows, loaded)

    @property
    def row_of_position(self) -> NDArray[np.int64]:
        """int64[n + m]: the item row behind each position."""
        return self.rows.row_of_position

    def positions(self, rows: Rows) -> Rows:
        """int32[k]: position of each row, -1 where there is none."""
        return self.rows.positions_of(rows)

    def with_new_items(self, rows: Rows, items: ItemTable) -> ServedRelease:
        """The same release speaking of these items too; a row it was not fitted on but knows is updated.

        Without a loaded release there is nothing to encode items with, and the answer is the same.
        """
        if self.loaded is None or not len(rows):
            return self
        n_fitted = len(self.loaded.content)
        vectors = dict(zip(self.row_of_position[n_fitted:].tolist(), self.new_content, strict=True))
        vectors.update(zip(rows.tolist(), self.loaded.encoder.transform(items), strict=True))
        if len(vectors) > MAX_NEW_ITEMS:
            log.warning(
                "%d items are newer than the release, %d are left out; train again",
                len(vectors),
                len(vectors) - MAX_NEW_ITEMS,
            )
        newest = sorted(vectors)[-MAX_NEW_ITEMS:]
        content = np.stack([vectors[row] for row in newest]).astype(np.float32)
        all_rows = np.concatenate([self.row_of_position[:n_fitted], np.array(newest, np.int64)])
        return replace(
            self,
            recommenders={
                name: recommender.with_new_items(content) for name, recommender in self.loaded.recommenders.items()
            },
            rows=RowMap.of(all_rows),
            new_content=content,
        )

    def fitted_on(self, rows: Rows) -> NDArray[np.bool_]:
        """bool[k]: whether the release itself, not what was added since, speaks of each row."""
        n_fitted = 0 if self.loaded is None else len(self.loaded.content)
        positions = self.positions(rows)
        fitted: NDArray[np.bool_] = (positions >= 0) & (positions < n_fitted)
        return fitted


class ModelHost:
    """Follows the pointer. A release that can't be loaded leaves the last good one in place, and is said."""

    def __init__(self, releases_dir: Path, database_id: UUID) -> None:
        self._folder = releases_dir
        self._database_id = database_id
        self._refused: tuple[str, int] | None = None
        self.failure: str | None = None
        """Why the release that the pointer names is not the one served; None while it is."""

    def newer_than(self, served_id: str | None) -> ServedRelease | None:
        """The release that the pointer names, unless it is the one served or can't be loaded."""
        named = current_id(self._folder)
        if named is None or named == served_id:
            self.failure = None
            return None
        attempt = (named, _changed_at(self._folder / named))
        if attempt == self._refused:
            return None
        try:
            release = ServedRelease.of(named, load_checked(self._folder, named, self._database_id))
        except Exception as error:  # noqa: BLE001 - a damaged release may raise anything; rules and keys must not wait
            self._refused, self.failure = attempt, f"release {named}: {error}"
            telemetry.RELEASE_FAILURES.inc()
            log.error("release %s is not served: %s", named, error)
            return None
        self._refused = self.failure = None
        telemetry.RELEASE_LOADED.set(time.time())
        log.info("serving release %s", named)
        return release


def _changed_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
