"""What can be shown right now: release ⊕ catalogue ⊕ rules, immutable; and the host that keeps it fresh."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import redis
from numpy.typing import NDArray
from redis.exceptions import RedisError
from sqlalchemy import Connection, Engine, select

from app import telemetry
from app.catalog import rules, snapshot, versions
from app.catalog.content import load_item_table
from app.catalog.rules import RulesSnapshot
from app.catalog.snapshot import CatalogSnapshot
from app.experiments import definitions
from app.experiments.definitions import Experiment
from app.feedback.cache_version import CacheVersion
from app.live.snapshot import PositionedSignals
from app.serving.breaker import Breaker
from app.serving.fallback import release_without_models
from app.serving.model_host import ModelHost, ServedRelease
from app.settings import Settings
from app.storage import keys, tables
from app.storage.database import POSTGRES_ERRORS, database_id
from app.storage.keys import KeyRing
from app.storage.redis import publish_versions
from models.contracts import LiveSignals
from models.live.state import LiveState

log = logging.getLogger(__name__)

Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]
BEFORE_ANSWERING = ("rules", "deletions", "experiments")
"""Versions that a request must not be older than: what is blocked, deleted or stopped is so on the next answer."""
CATCH_UP_SECONDS = 2.0
"""A request waits no longer for Postgres before it is answered from the last inventory."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """One consistent state that a request works on from its first step to its last.

    live:        what people do now, by position; goes on changing under the hands of who asks
    showable:    bool[n + m] by position: exists, and no block without scope or times forbids it
    experiments: those that run, holdouts first
    is_stale:    known to be older than what was committed, while Postgres could not be asked
    """

    release: ServedRelease
    catalog: CatalogSnapshot
    rules: RulesSnapshot
    keys: KeyRing
    versions: Mapping[str, str]
    live: LiveSignals
    showable: Mask
    experiments: tuple[Experiment, ...] = ()
    is_stale: bool = False

    @classmethod
    def of(
        cls,
        release: ServedRelease,
        catalog: CatalogSnapshot,
        rules: RulesSnapshot,
        keys: KeyRing,
        *,
        versions: Mapping[str, str],
        live: LiveSignals,
        experiments: tuple[Experiment, ...] = (),
    ) -> Inventory:
        by_row = catalog.exists.copy()
        by_row[rules.blocked_always] = False
        return cls(release, catalog, rules, keys, versions, live, by_row[release.row_of_position], experiments)

    def eligible(self, *, categories: Sequence[str] = (), kind: str | None = None, creator: str | None = None) -> Mask:
        """bool[n + m] by position: showable items that pass the request's filters."""
        if not categories and kind is None and creator is None:
            return self.showable
        by_row = self.catalog.mask(categories=categories, kind=kind, creator=creator)
        mask: Mask = self.showable & by_row[self.release.row_of_position]
        return mask

    def is_behind(self, known: Mapping[str, str]) -> bool:
        """Whether Redis knows of rules, deletions or experiments that this inventory does not have."""
        return any(known.get(name) != self.versions.get(name) for name in BEFORE_ANSWERING)


class InventoryHost:
    """Keeps `current` fresh: a little behind for new items, never behind for rules, deletions and experiments."""

    def __init__(
        self,
        engine: Engine,
        cache: redis.Redis,
        settings: Settings,
        live: LiveState,
        breaker: Breaker | None = None,
    ) -> None:
        """breaker: shared with whatever else of this worker asks Postgres for a request."""
        self._live = live
        self._engine = engine
        self._cache = cache
        self._settings = settings
        self._lock = threading.Lock()
        self._catching_up: asyncio.Task[bool] | None = None
        self._settled: Mapping[str, str] = {}
        self._postgres = breaker or Breaker("postgres", patience_seconds=CATCH_UP_SECONDS)
        looked_at = time.monotonic()
        with engine.connect() as db:
            self.models = ModelHost(settings.releases_dir, database_id(db))
            self.current = self._loaded(db)
        self.cache_version = CacheVersion(self.current.versions["cache"], looked_at)
        self._publish()

    async def caught_up(self, known: Mapping[str, str] | None) -> Inventory:
        """The current inventory, loaded again first where Redis knows newer rules, deletions or experiments.

        known: versions that came with the user's context; None where Redis is away
        Whatever Redis says, Postgres was looked at a moment ago, by the refresher or by this request. Where it does not
        answer, the last inventory serves, and says that it is stale where Redis knows of something newer.
        """
        if self._is_good_for(known):
            return self.current
        if not self._postgres.lets_through():
            return self._last_for(known)
        since = time.monotonic()
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await self._catch_up(known)
        except (*POSTGRES_ERRORS, TimeoutError) as error:
            self._postgres.failed(error, since=since, overdue=self._catching_up)
            return self._last_for(known)
        if known is not None:
            self._settled = known
        return self.current

    def _is_good_for(self, known: Mapping[str, str] | None) -> bool:
        return self.cache_version.is_trusted and not self._is_behind(known)

    def _is_behind(self, known: Mapping[str, str] | None) -> bool:
        return known is not None and known != self._settled and self.current.is_behind(known)

    def _last_for(self, known: Mapping[str, str] | None) -> Inventory:
        return replace(self.current, is_stale=True) if self._is_behind(known) else self.current

    async def _catch_up(self, known: Mapping[str, str] | None) -> None:
        """A refresh that is under way may have looked before the change that `known` tells of: then one more."""
        if self._catching_up is not None and not self._catching_up.done():
            await asyncio.shield(self._catching_up)
            if self._is_good_for(known):
                return
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(asyncio.to_thread(self.refresh))
            # Where nobody waits any more its failure is no news.
            self._catching_up.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._catching_up)

    def refresh(self) -> bool:
        """Brings everything up to date from Postgres and the releases folder; whether Redis was told, too."""
        with self._lock:
            looked_at = time.monotonic()
            with self._engine.connect() as db:
                self.current = self._loaded(db)
            self._postgres.answered()
            self.cache_version.seen_in_postgres(self.current.versions["cache"], looked_at)
            return self._publish()

    def _loaded(self, db: Connection) -> Inventory:
        old: Inventory | None = getattr(self, "current", None)
        now = versions.read(db)
        # Before the catalogue, which then knows every item that a rule speaks of.
        current_rules = old.rules if old and old.rules.version == now["rules"] else rules.load(db)
        catalog, changed = snapshot.refresh(db, old.catalog if old else CatalogSnapshot.empty())
        current_keys = old.keys if old and old.versions["keys"] == now["keys"] else keys.load(db, self._settings)
        is_same = old is not None and old.versions["experiments"] == now["experiments"]
        experiments = old.experiments if old and is_same else definitions.running(db)
        release = self._release(db, old, catalog, changed)
        if old and release is old.release and not len(changed) and now == old.versions:
            return old
        live = old.live if old and old.release is release else PositionedSignals(self._live, release.rows)
        inventory = Inventory.of(
            release, catalog, current_rules, current_keys, versions=now, live=live, experiments=experiments
        )
        telemetry.CATALOG_ITEMS.set(int(inventory.showable.sum()))
        telemetry.NEW_ITEMS.set(len(release.new_content))
        return inventory

    def _release(self, db: Connection, old: Inventory | None, catalog: CatalogSnapshot, changed: Rows) -> ServedRelease:
        served = old.release if old else None
        newer = self.models.newer_than(served.release_id if served else None, earlier=partial(_activated, db))
        if newer is not None:
            served, changed = newer, np.flatnonzero(catalog.exists).astype(np.int32)
        if served is None or served.release_id is None:
            return release_without_models(catalog) if served is None or len(changed) else served
        unknown = changed[catalog.exists[changed] & ~served.fitted_on(changed)]
        return served.with_new_items(unknown, load_item_table(db, unknown)) if len(unknown) else served

    def _publish(self) -> bool:
        try:
            publish_versions(self._cache, self.current.versions)
        except (RedisError, OSError) as error:
            telemetry.DEPENDENCY_ERRORS.labels("redis").inc()
            log.debug("versions are not copied to Redis: %s", error)
            return False
        return True


def _activated(db: Connection) -> list[str]:
    """Releases that were served before, the latest first."""
    table = tables.releases
    statement = select(table.c.release_id).where(table.c.activated_at.is_not(None))
    return list(db.execute(statement.order_by(table.c.activated_at.desc())).scalars())
