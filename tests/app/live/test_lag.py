"""How far behind the live signals are: since when something that was committed is missing, whoever is to blame."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text

from app.feedback.ingest import Ingest
from tests.app.live.conftest import Follow, an_event
from tests.patience import until

BEHIND = 1.5


@contextmanager
def transaction_left_open(engine: Engine) -> Iterator[None]:
    """Of somebody who changed something, and does not say whether it holds."""
    with engine.connect() as db:
        db.execute(text("set application_name = 'somebody slow'"))
        db.execute(text("update versions set seq = seq where name = 'keys'"))
        yield
        db.rollback()


def test_what_an_open_transaction_holds_back_is_a_lag_that_grows_and_ends(
    engine: Engine, ingest: Ingest, follow: Follow
) -> None:
    follower = follow()
    with transaction_left_open(engine):
        ingest.submit_blocking([an_event("ann", "a")])
        until(lambda: follower.lag_seconds > BEHIND)
        assert follower.state.totals().sum() == 0
        until(lambda: "somebody slow" in (follower.held_back_by or ""))
    until(lambda: follower.state.totals().sum() == 1.5)
    until(lambda: follower.lag_seconds < BEHIND)
    until(lambda: follower.held_back_by is None)


def test_an_open_transaction_that_holds_nothing_back_is_no_lag(engine: Engine, follow: Follow) -> None:
    follower = follow()
    with transaction_left_open(engine):
        since = time.monotonic()
        until(lambda: time.monotonic() - follower.lag_seconds > since)
        assert follower.held_back_by is None


def test_transactions_one_after_the_other_are_no_lag(engine: Engine, ingest: Ingest, follow: Follow) -> None:
    """Under load some transaction is always open, so that at no look everything is counted."""
    follower = follow()
    with engine.connect() as one, engine.connect() as other:
        older, younger = one, other
        older.execute(text("select pg_current_xact_id()"))
        begun = []
        for number in range(10):
            begun.append(time.monotonic())
            younger.execute(text("select pg_current_xact_id()"))
            ingest.submit_blocking([an_event("ann", f"i{number}")])
            before = follower.watermark
            older.rollback()
            until(lambda before=before: follower.watermark > before)
            older, younger = younger, older
        # Else the state is one of a while ago, and stays so while the last of them is open.
        until(lambda: time.monotonic() - follower.lag_seconds > begun[5])


def test_a_table_that_is_locked_is_a_lag(engine: Engine, ingest: Ingest, follow: Follow) -> None:
    follower = follow()
    locked, over = threading.Event(), threading.Event()

    def lock() -> None:
        with engine.begin() as db:
            db.execute(text("lock table interactions in access exclusive mode"))
            locked.set()
            over.wait(120)

    thread = threading.Thread(target=lock)
    thread.start()
    assert locked.wait(60)
    until(lambda: follower.lag_seconds > BEHIND)
    over.set()
    thread.join()
    until(lambda: follower.lag_seconds < BEHIND)
