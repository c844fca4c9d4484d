"""A Postgres that crashes gives the numbers of transactions that ended in vain out again, if it had not yet written
down that they were taken."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import redis
from sqlalchemy import Connection, Engine, text

from app.catalog.snapshot import CatalogSnapshot, refresh
from app.feedback.ingest import Ingest
from app.live import checkpoint
from app.live.follower import LiveFollower
from app.settings import Settings
from app.storage.database import migrate, open_engine
from app.storage.embedded import embedded_servers, running_pids
from app.storage.outlasting import outlasting
from benchmarks.live_chaos import folder
from models.live.state import LiveState
from tests.app.live.conftest import an_event, row_of
from tests.app.live.test_follower import caught_up, poke, rests
from tests.patience import PATIENCE_SECONDS, until

IN_VAIN = 200
WHO_WRITE_DOWN = ("walwriter", "background writer", "checkpointer", "autovacuum")


def test_what_comes_under_a_number_that_ended_in_vain_before_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        data_dir = stack.enter_context(folder())
        servers = stack.enter_context(embedded_servers(data_dir))
        migrate(servers.database_url)
        engine = open_engine(servers.database_url)
        stack.callback(engine.dispose)
        settings = Settings(live_checkpoint_seconds=3_600, refresh_seconds=0.05)
        ingest = Ingest(engine, redis.Redis.from_url(servers.redis_url), settings, settle_seconds=0)
        stack.callback(ingest.close)
        follower = LiveFollower(engine, settings)
        stack.callback(follower.close)
        ingest.submit_blocking([an_event("ann", "a")])
        caught_up(engine, follower)
        until(lambda: follower._is_projector)
        # The one checkpoint of this test is written down before its numbers are.
        until(lambda: rests(follower))

        with crashing(data_dir):
            last = end_in_vain(engine)
            until(lambda: follower.watermark > last)
            catalog = catalog_since(engine, CatalogSnapshot.empty())
            follower._refresh_seconds = 3_600
            poke(follower)
            until(lambda: rests(follower))

        outlasting(lambda: engine.connect().close(), PATIENCE_SECONDS)
        receipt = ingest.submit_blocking([an_event("bob", "b")])
        number = int(receipt.watermark)
        assert number < follower.watermark, "it was not given out before"
        end_in_vain(engine)
        assert end_in_vain(engine) > follower.watermark, "those have not been passed again"

        believed = list[bool]()

        def loaded(db: Connection) -> LiveState:
            believed.append(follower.counts(number))
            return load(db)

        load = checkpoint.load
        monkeypatch.setattr(checkpoint, "load", loaded)
        follower._refresh_seconds = 0.05
        poke(follower)
        assert caught_up(engine, follower).totals()[row_of(engine, "b")] == 1.5
        assert believed == [False]
        assert follower.counts(number)
        assert set(catalog_since(engine, catalog).row_of) == {"a", "b"}


def catalog_since(engine: Engine, old: CatalogSnapshot) -> CatalogSnapshot:
    with engine.connect() as db:
        return refresh(db, old)[0]


def end_in_vain(engine: Engine) -> int:
    """Many transactions that are given a number and do nothing; the last number."""
    with engine.connect() as db:
        for _ in range(IN_VAIN):
            last = db.execute(text("select pg_current_xact_id()::text::bigint")).scalar_one()
            db.rollback()
    return int(last)


@contextmanager
def crashing(data_dir: Path) -> Iterator[None]:
    """Postgres is killed when the block ends; within it its log is written down by who commits, and by nobody else."""
    parent = psutil.Process(running_pids(data_dir)["postgres"])
    family = [parent, *parent.children(recursive=True)]
    try:
        for process in family:
            if any(name in " ".join(process.cmdline()) for name in WHO_WRITE_DOWN):
                process.suspend()
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
