"""Old events, thinned out so that nothing that is answered changes.

Of what a user did with an item before the floor, those days stay that hold the latest event, the latest opinion, the
latest decision on a like or the latest visit that counts: the seen set, the state of each item, likes and trails follow
from them. What the other days had added to the live counters moves to `live_pruned` (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from app.feedback.event_log import LIKE_KINDS
from app.feedback.signals import KINDS, masses_of, signs_of
from app.live import checkpoint, pruned
from app.storage.copy_out import POSTGRES_EPOCH, copy_out
from models.live.changes import Events

DAY_MICROSECONDS = 86_400_000_000

_ROW = np.dtype(
    [("user", np.int32), ("item", np.int32), ("kind", np.int16), ("value", np.float64), ("at", np.int64),
     ("seq", np.int64)]
)  # fmt: skip
_PAST = """
    SELECT user_row, item_row, coalesce(array_position(%(kinds)s, kind) - 1, 0)::int2, coalesce(value, 'NaN'),
        least("timestamp", received_at), seq
    FROM interactions WHERE user_row = ANY(%(users)s)
"""
# A follower that had not read them yet starts again from the checkpoint, which holds them: as for retractions.
_DELETE = """
    WITH gone AS (
        DELETE FROM interactions WHERE seq = ANY(%(seqs)s) RETURNING event_id, xid
    ), ids AS (
        DELETE FROM event_ids USING gone WHERE event_ids.event_id = gone.event_id
    ), last AS (
        SELECT ((max(xid::text::bigint) + 1)::text)::xid8 AS xid FROM gone
    )
    UPDATE live_checkpoint SET retractions_from = greatest(retractions_from, last.xid) FROM last
"""
_UNCOUNTED = """
    SELECT EXISTS (
        SELECT FROM interactions
        WHERE xid >= %(since)s::xid8 AND least("timestamp", received_at) < %(floor)s
    )
"""
# The condition on the bare timestamp follows from the one on the earlier of the two, and has an index.
_USERS = """
    SELECT user_row, count(*) FROM interactions
    WHERE "timestamp" >= coalesce(%(since)s::timestamptz, '-infinity') AND least("timestamp", received_at) < %(floor)s
    GROUP BY user_row ORDER BY user_row
"""


def is_counted(db: Connection, floor: datetime) -> bool:
    """Whether all events before the floor are in the stored live signals: only then they may go."""
    stored = checkpoint.stored(db)
    if stored is None:
        return False
    parameters = {"since": str(stored.watermark), "floor": floor}
    return not db.exec_driver_sql(_UNCOUNTED, parameters).scalar_one()


def users_between(db: Connection, since: datetime | None, floor: datetime) -> list[tuple[int, int]]:
    """Rows of the users who did something from `since` to before the floor, ascending, and how much that was."""
    return [(user, events) for user, events in db.exec_driver_sql(_USERS, {"since": since, "floor": floor})]


def compact(db: Connection, weights: Mapping[str, float], users: Sequence[int], floor: datetime) -> int:
    """Deletes what these users' old events need no more, in the caller's transaction; how many.

    floor: midnight, UTC. The caller holds off erasures, and no event before the floor comes any more.
    """
    past = copy_out(db, _PAST, {"users": list(users), "kinds": list(KINDS)}, _ROW)
    goes = _redundant(past, weights, round((floor.timestamp() - POSTGRES_EPOCH) * 1e6))
    if not goes.any():
        return 0
    gone = past[goes]
    pruned.add(db, _events(gone, weights))
    db.exec_driver_sql(_DELETE, {"seqs": gone["seq"].tolist()})
    return len(gone)


def _redundant(past: NDArray[np.void], weights: Mapping[str, float], floor: int) -> NDArray[np.bool_]:
    """bool[n]: which of these users' events may go, given all of them. floor: microseconds since 2000, a midnight."""
    order = np.lexsort((past["seq"], past["at"], past["item"], past["user"]))
    ordered = past[order]
    pair = _numbered(ordered["user"], ordered["item"])
    day = _numbered(ordered["user"], ordered["item"], ordered["at"] // DAY_MICROSECONDS)
    needed = np.zeros(len(past), np.bool_)
    for matters in _what_matters(ordered, weights):
        needed[_last_of_each(pair, matters)] = True
    day_is_needed = np.bincount(day, needed, minlength=1) > 0
    redundant = np.zeros(len(past), np.bool_)
    redundant[order] = (ordered["at"] < floor) & ~day_is_needed[day]
    return redundant


def _what_matters(past: NDArray[np.void], weights: Mapping[str, float]) -> tuple[NDArray[np.bool_], ...]:
    """For each thing that is read from a past, which events it is read from: the latest of them tells."""
    codes = past["kind"]
    signs = signs_of(KINDS, codes, past["value"])
    opinions = (signs != 0) | np.isin(codes, [KINDS.index(kind) for kind in ("rating", "unlike")])
    decisions = np.isin(codes, [KINDS.index(kind) for kind in LIKE_KINDS])
    visits = masses_of(KINDS, codes, past["value"], weights) > 0
    return np.ones(len(past), np.bool_), opinions, decisions, visits


def _numbered(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[n]: the number of each run of equal keys."""
    starts = np.zeros(len(keys[0]), np.bool_)
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    numbers: NDArray[np.int64] = np.cumsum(starts)
    return numbers


def _last_of_each(group: NDArray[np.int64], among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64[k]: the last index of each group, of those that are among."""
    places = np.flatnonzero(among)
    is_last = np.append(np.diff(group[places]) != 0, np.ones(min(len(places), 1), np.bool_))
    last: NDArray[np.int64] = places[is_last]
    return last


def _events(gone: NDArray[np.void], weights: Mapping[str, float]) -> Events:
    masses = masses_of(KINDS, gone["kind"], gone["value"], weights)
    here = masses > 0
    before, after = np.zeros(int(here.sum()), np.bool_), np.ones(int(here.sum()), np.bool_)
    times = gone["at"][here] / 1e6 + POSTGRES_EPOCH
    return Events(gone["user"][here], gone["item"][here], masses[here], times, before, after)
