"""The release that is served: found by a pointer file, loaded aside, checked, then swapped in one reference."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app import telemetry
from app.feedback.user_view import UserView
from app.serving.pasts import Past, Pasts
from app.storage.release_files import State, load_checked, pointed, state_of
from models.artifacts import ArtifactError, LoadedRelease, RowMap
from models.contracts import Recommender
from models.data.dataset import ItemTable

log = logging.getLogger(__name__)

Rows = NDArray[np.int32]
MAX_NEW_ITEMS = 20_000
"""New items that content recommenders speak of between two trainings; more wait for the next release."""

EARLIER_RELEASES = 5
"""So many are tried where nothing is served yet and what the pointer names can't be."""


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
    _pasts: Pasts = field(default_factory=Pasts, init=False, repr=False, compare=False)

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

    def past_of(self, view: UserView) -> Past:
        """What the user did, as far as the release knows the items; the very same one for the same view."""
        return self._pasts.of(view, self.rows)

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
        self.database_id = database_id
        self._refused: dict[str, tuple[State, ArtifactError]] = {}
        self._served_state: State = frozenset()
        self.failure: str | None = None
        """Why what is served is not, whole and on disk, the release that the pointer names; None while it is."""

    def newer_than(
        self, served_id: str | None, earlier: Callable[[], Iterable[str]] = lambda: ()
    ) -> ServedRelease | None:
        """The release to serve instead of the one served: what the pointer names, if that can be loaded.

        earlier: names of releases that were served before, the latest first. The first of them that can be loaded is
        answered where nothing is served yet and the pointer does not lead to a release either.
        """
        release = named = None
        try:
            named = pointed(self._folder)
            if named == served_id:
                self._check_unchanged(named)
            else:
                release = self._loaded(named)
            self.failure = None
        except ArtifactError as error:
            release = self._first_of(earlier()) if served_id is None else None
            instead = served_id if release is None else release.release_id
            self.failure = str(error)
            if instead not in (None, named):
                self.failure += f"; release {instead} is served instead"
        if release is not None:
            telemetry.RELEASE_LOADED.set(time.time())
            log.info("serving release %s", release.release_id)
        is_served = served_id is not None or release is not None
        telemetry.DEPENDENCY_UP.labels("release").set(is_served and self.failure is None)
        return release

    def _check_unchanged(self, served_id: str) -> None:
        """Raises ArtifactError where the files of what is served are not those that were loaded."""
        state = state_of(self._folder, served_id)
        if state != self._served_state:
            cause = "changed since it was loaded" if state else "deleted, though it is served until a restart"
            raise ArtifactError(self._folder / served_id, cause)

    def _first_of(self, names: Iterable[str]) -> ServedRelease | None:
        present = (name for name in names if os.path.isdir(self._folder / name))  # which never fails
        for name in islice(present, EARLIER_RELEASES):
            with suppress(ArtifactError):
                return self._loaded(name)
        return None

    def _loaded(self, name: str) -> ServedRelease:
        """Raises ArtifactError; a release that was refused is not tried again before its files change."""
        state = state_of(self._folder, name)
        if name in self._refused and self._refused[name][0] == state:
            raise self._refused[name][1]
        try:
            release = ServedRelease.of(name, load_checked(self._folder, name, self.database_id))
        except Exception as error:  # a damaged release may raise anything; rules and keys must not wait
            refusal = error if isinstance(error, ArtifactError) else ArtifactError(self._folder / name, _said(error))
            self._refused[name] = state, refusal
            telemetry.RELEASE_FAILURES.inc()
            log.error("release %s is not served: %s", name, refusal)
            raise refusal from error
        self._refused.pop(name, None)
        self._served_state = state
        return release


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
