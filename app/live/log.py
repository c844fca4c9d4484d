"""The log of interactions in commit-safe order, as changes of the live state.

Numbers are given out in another order than transactions commit in; but below `pg_snapshot_xmin` every transaction is
over. So what lies between one such mark and the next is complete, for ever. The events "as of" a mark X are the
interactions stored below X, and of those erased since the ones that were erased at or above X (`retractions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from app.feedback.signals import KINDS, masses_of
from app.live import pruned
from app.storage.copy_out import POSTGRES_EPOCH, copy_blocks, copy_out
from models.live.changes import Changes, Events, changes_between
from models.live.recency import RecencyLists
from models.live.state import LiveState
from models.live.trails import VISITORS

ROWS_PER_STEP = 10_000
"""New interactions that are taken in one go: readers of the state wait some ten milliseconds for them."""
ROWS_PER_BLOCK = 200_000
"""Interactions of whole users that a recount holds in memory at a time."""
NEVER = np.iinfo(np.int64).max

_ROW = np.dtype(
    [("user", np.int32), ("item", np.int32), ("kind", np.int16), ("value", np.float64), ("at", np.int64),
     ("stored", np.int64), ("erased", np.int64)]
)  # fmt: skip

_COLUMNS = """user_row, item_row, coalesce(array_position(%(kinds)s, kind) - 1, 0)::int2 AS kind,
    coalesce(value, 'NaN') AS value, least("timestamp", received_at) AS at"""
_STORED = f"{_COLUMNS}, xid::text::bigint AS stored, {NEVER}::bigint AS erased"
_RETRACTED = f"{_COLUMNS}, stored_xid::text::bigint AS stored, xid::text::bigint AS erased"

# The latest of all, not whether there is one above: to answer "no" to that the planner would read all interactions.
_LOOK = """
    WITH horizon AS MATERIALIZED (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xid)
    SELECT xid::text::bigint AS until,
        (SELECT past.xid::text::bigint FROM interactions AS past
         WHERE past.xid >= %(since)s::xid8 AND past.xid < horizon.xid
         ORDER BY past.xid OFFSET %(rows)s LIMIT 1) AS cut,
        EXISTS (SELECT FROM interactions AS past WHERE past.xid >= %(since)s::xid8 AND past.xid < horizon.xid) AS fresh,
        EXISTS (SELECT FROM retractions AS gone WHERE gone.xid >= %(since)s::xid8) AS erased,
        coalesce((SELECT retractions_from::text::bigint FROM live_checkpoint), 0) AS retractions_from,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS beyond,
        coalesce(
            greatest((SELECT past.xid FROM interactions AS past ORDER BY past.xid DESC LIMIT 1),
                     (SELECT gone.xid FROM retractions AS gone ORDER BY gone.xid DESC LIMIT 1)) >= horizon.xid, false
        ) AS held_back
    FROM horizon
"""
# Null where this user may not see what others do.
_HOLDER = """
    SELECT concat('process ', pid, ' (', application_name, '), whose transaction is open since ', xact_start)
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) DESC LIMIT 1
"""

# All that happened on the days of new interactions. The client's clock may be minutes ahead of `received_at`: a day
# of slack bounds the search in the index of pasts.
_NEW = f"""
    SELECT past.* FROM (
        SELECT DISTINCT user_row, item_row, date_trunc('day', least("timestamp", received_at), 'UTC') AS begins
        FROM interactions WHERE xid >= %(since)s::xid8 AND xid < %(until)s::xid8
    ) AS day CROSS JOIN LATERAL (
        SELECT {_STORED} FROM interactions AS held
        WHERE held.user_row = day.user_row AND held.item_row = day.item_row AND held.xid < %(until)s::xid8
            AND held."timestamp" >= day.begins AND held."timestamp" < day.begins + interval '2 days'
            AND least(held."timestamp", held.received_at) >= day.begins
            AND least(held."timestamp", held.received_at) < day.begins + interval '1 day'
    ) AS past
"""  # noqa: S608 - columns of this file
# And all that users did who were erased since: also above `until`, for it may have been stored below.
_NEW_AND_ERASED = f"""
    {_NEW} UNION ALL
    SELECT {_RETRACTED} FROM retractions WHERE stored_xid < %(until)s::xid8 AND xid >= %(since)s::xid8
"""  # noqa: S608 - columns of this file
_AS_OF = f"""
    SELECT {_STORED} FROM interactions WHERE xid < %(until)s::xid8 AND {{only}}
    UNION ALL
    SELECT {_RETRACTED} FROM retractions
    WHERE stored_xid < %(until)s::xid8 AND xid >= %(until)s::xid8 AND {{only}}
"""  # noqa: S608 - columns of this file
_EVERYTHING = _AS_OF.format(only="true") + " ORDER BY user_row"
_OF_ITEMS = _AS_OF.format(only="item_row = ANY(%(items)s)")


class Horizon(NamedTuple):
    """How far the log can be read now.

    until:  everything below is over, and of what lies between there are not too many to take in one go
    latest: the same without the second
    fresh:  whether anything is new up to `latest`
    erased: whether anything was erased
    retractions_from: retractions below are pruned
    beyond: every transaction that is over by now is below
    held_back: whether something is committed at or above `latest`, where an older transaction is still open
    """

    until: int
    latest: int
    fresh: bool
    erased: bool
    retractions_from: int
    beyond: int
    held_back: bool


def look(db: Connection, since: int, *, rows: int = ROWS_PER_STEP) -> Horizon:
    """What there is at or above the mark `since`. One transaction with more than `rows` is taken whole."""
    found = db.exec_driver_sql(_LOOK, {"since": str(since), "rows": rows}).one()
    until = found.until if found.cut is None else max(found.cut, since + 1)
    return Horizon(until, found.until, found.fresh, found.erased, found.retractions_from, found.beyond, found.held_back)


def holder(db: Connection) -> str | None:
    """Whose transaction is the oldest that has changed something; None where nobody's, or it can't be seen."""
    found: str | None = db.exec_driver_sql(_HOLDER).scalar_one_or_none()
    return found


def changes(db: Connection, weights: Mapping[str, float], state: LiveState, horizon: Horizon, *, since: int) -> Changes:
    """What turns a state as of `since` into one as of `horizon.until`.

    db: the transaction that `horizon` was seen in; its snapshot must not move.
    """
    if not (horizon.fresh or horizon.erased):
        return Changes()
    until = horizon.until
    rows = copy_out(db, _NEW_AND_ERASED if horizon.erased else _NEW, _marks(since, until), _ROW)
    before = (rows["stored"] < since) & (rows["erased"] >= since)
    after = (rows["stored"] < until) & (rows["erased"] >= until)
    counted = changes_between(_events(rows, weights, before, after))
    forgotten = np.unique(rows["user"][(rows["erased"] >= since) & (rows["erased"] < until)])
    losing = state.losing(forgotten) if len(forgotten) else np.empty(0, np.int64)
    if len(losing):
        counted = replace(counted, refilled=_visitors(db, weights, losing, until))
    return replace(counted, forgotten=forgotten)


def recount(engine: Engine, weights: Mapping[str, float], *, until: int | None = None) -> tuple[LiveState, int]:
    """The live state from the events and from what pruned ones had added, and the mark that it is as of: `until`, or as
    late as can be.

    until: not above the horizon, and less than an hour ago, for retractions are pruned. Memory: the state and some
    ten thousand interactions.
    """
    with engine.execution_options(isolation_level="REPEATABLE READ").connect() as db, db.begin():
        return counted_anew(db, weights, until=until)


def counted_anew(db: Connection, weights: Mapping[str, float], *, until: int | None = None) -> tuple[LiveState, int]:
    """`recount` in the caller's transaction, whose snapshot must not move."""
    db.execute(text("set local statement_timeout = 0"))
    until = look(db, 0).latest if until is None else until
    state = pruned.load(db)

    def fold(rows: NDArray[np.void]) -> None:
        nothing, all_of_them = np.zeros(len(rows), np.bool_), np.ones(len(rows), np.bool_)
        state.fold(changes_between(_events(rows, weights, nothing, all_of_them)))

    users = _WholeUsers(fold)
    copy_blocks(db, _EVERYTHING, _marks(until, until), _ROW, users.take)
    users.finish()
    return state, until


class _WholeUsers:
    """Cuts rows that come ordered by user into blocks between users."""

    def __init__(self, on_block: Callable[[NDArray[np.void]], None]) -> None:
        self._on_block = on_block
        self._held: list[NDArray[np.void]] = []
        self._rows = 0

    def take(self, rows: NDArray[np.void]) -> None:
        self._held.append(rows)
        self._rows += len(rows)
        if self._rows >= ROWS_PER_BLOCK:
            held = np.concatenate(self._held)
            last = int(np.searchsorted(held["user"], held["user"][-1]))
            self._on_block(held[:last])
            self._held, self._rows = [held[last:]], len(held) - last

    def finish(self) -> None:
        self._on_block(np.concatenate(self._held))


def _visitors(
    db: Connection, weights: Mapping[str, float], items: NDArray[np.int64], until: int
) -> dict[int, tuple[NDArray[np.int32], NDArray[np.float64]]]:
    """The latest visitors of each item, and their times, as of `until`."""
    latest = RecencyLists(VISITORS)

    def meet(rows: NDArray[np.void]) -> None:
        everything = np.ones(len(rows), np.bool_)
        events = _events(rows, weights, everything, everything)
        latest.meet(events.items, events.users, events.timestamps)

    copy_blocks(db, _OF_ITEMS, _marks(until, until) | {"items": items.tolist()}, _ROW, meet)
    return {item: (latest.others(item), latest.times(item)) for item in items.tolist()}


def _marks(since: int, until: int) -> dict[str, object]:
    return {"since": str(since), "until": str(until), "kinds": list(KINDS)}


def _events(
    rows: NDArray[np.void], weights: Mapping[str, float], before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> Events:
    """Those of the rows that have a mass."""
    masses = masses_of(KINDS, rows["kind"], rows["value"], weights)
    here = masses > 0
    return Events(
        users=rows["user"][here],
        items=rows["item"][here],
        masses=masses[here],
        timestamps=rows["at"][here] / 1e6 + POSTGRES_EPOCH,
        before=before[here],
        after=after[here],
    )
