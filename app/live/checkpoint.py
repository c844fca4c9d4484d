"""The live state in Postgres, so that a worker that starts need not read years of history.

Kept in chunks of some hundred items or users, as numpy writes arrays, without pickle. The chunks that changed and the
mark that they are as of are stored in one transaction, so there is no moment at which a crash loses or doubles.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from app.storage.tables import live_chunks
from models.live.changes import Changes
from models.live.counters import HALF_LIVES
from models.live.state import LiveState
from models.live.trails import TRAIL, VISITORS

FORMAT = 1
ITEMS_PER_CHUNK = 512
USERS_PER_CHUNK = 4_096
RETRACTIONS_KEPT = "1 hour"
"""Who has not read them by then starts again from the checkpoint."""


def fingerprint(weights: Mapping[str, float]) -> str:
    """What a stored state was made by: under another definition or other weights it says nothing."""
    definition = [FORMAT, HALF_LIVES, TRAIL, VISITORS, ITEMS_PER_CHUNK, USERS_PER_CHUNK, sorted(weights.items())]
    return hashlib.sha256(json.dumps(definition).encode()).hexdigest()


class Stored(NamedTuple):
    """What Postgres holds."""

    fingerprint: str
    watermark: int


@dataclass(slots=True)
class Unsaved:
    """Which chunks differ from a stored checkpoint.

    since: the watermark of that checkpoint; None where nothing was stored that this state goes back to
    """

    since: int | None = None
    items: set[int] = field(default_factory=set)
    users: set[int] = field(default_factory=set)

    def note(self, changes: Changes, holding: NDArray[np.int64]) -> None:
        """holding: items that a forgotten user was a visitor of."""
        items = (changes.counted_items, changes.visit_items, holding, np.array(list(changes.refilled), np.int64))
        self.items.update(_chunks(np.concatenate(items), ITEMS_PER_CHUNK))
        self.users.update(_chunks(np.concatenate((changes.visit_users, changes.forgotten)), USERS_PER_CHUNK))

    def note_all(self, state: LiveState) -> None:
        n_items, n_users = state.extent()
        self.items = set(range(-(-n_items // ITEMS_PER_CHUNK)))
        self.users = set(range(-(-n_users // USERS_PER_CHUNK)))


def stored(db: Connection) -> Stored | None:
    """What the last checkpoint is of."""
    found = db.execute(text("select fingerprint, watermark::text::bigint from live_checkpoint")).one_or_none()
    return None if found is None else Stored(*found)


def load(db: Connection) -> LiveState:
    """The stored state. db: a transaction whose snapshot does not move."""
    state = LiveState()
    chunks = live_chunks.select().execution_options(stream_results=True, yield_per=8)
    for part, number, data in db.execute(chunks):
        arrays = unpacked(data)
        if part == "items":
            state.restore_items(number * ITEMS_PER_CHUNK, arrays)
        else:
            state.restore_users(number * USERS_PER_CHUNK, arrays)
    return state


def store(db: Connection, state: LiveState, unsaved: Unsaved, what: Stored) -> None:
    """Brings the stored state to this one, in the caller's transaction."""
    goes_on = stored(db) == (what.fingerprint, unsaved.since)
    if not goes_on:
        unsaved.note_all(state)
    # Before the first row is written: from then on this transaction holds back the horizon of all who follow.
    rows = _rows(state, unsaved)
    if not goes_on:
        db.execute(live_chunks.delete())
    for row in rows:
        db.exec_driver_sql(_STORE_CHUNK, row)
    db.exec_driver_sql(_STORE, {"fingerprint": what.fingerprint, "watermark": str(what.watermark)})


def prune(db: Connection) -> int:
    """Deletes retractions that nobody needs any more, in the caller's transaction; how many."""
    pruned: int = db.exec_driver_sql(_PRUNE, {"kept": RETRACTIONS_KEPT}).scalar_one()
    return pruned


# Written out, as all that is asked in rounds: to put a statement together takes longer than to send it.
_STORE_CHUNK = """
    INSERT INTO live_chunks (part, number, data) VALUES (%(part)s, %(number)s, %(data)s)
    ON CONFLICT (part, number) DO UPDATE SET data = excluded.data
"""
_STORE = """
    INSERT INTO live_checkpoint (fingerprint, watermark) VALUES (%(fingerprint)s, %(watermark)s::xid8)
    ON CONFLICT ("only") DO UPDATE
    SET fingerprint = excluded.fingerprint, watermark = excluded.watermark, stored_at = now()
"""
# Those that the checkpoint has counted. A number once pruned stays so: transactions only get higher ones.
_PRUNE = """
    WITH pruned AS (
        DELETE FROM retractions USING live_checkpoint
        WHERE retracted_at < now() - %(kept)s::interval AND xid < watermark RETURNING xid::text::bigint AS xid
    ), noted AS (
        UPDATE live_checkpoint SET retractions_from = (SELECT (max(xid) + 1)::text::xid8 FROM pruned)
        WHERE EXISTS (SELECT FROM pruned)
    )
    SELECT count(*) FROM pruned
"""


def _rows(state: LiveState, unsaved: Unsaved) -> list[dict[str, object]]:
    """What `live_chunks` has to hold of the unsaved chunks."""
    items = [
        ("items", number, state.item_parts(number * ITEMS_PER_CHUNK, (number + 1) * ITEMS_PER_CHUNK))
        for number in sorted(unsaved.items)
    ]
    users = [
        ("users", number, state.user_parts(number * USERS_PER_CHUNK, (number + 1) * USERS_PER_CHUNK))
        for number in sorted(unsaved.users)
    ]
    return [{"part": part, "number": number, "data": packed(arrays)} for part, number, arrays in items + users]


def packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as numpy writes them, without pickle."""
    sink = io.BytesIO()
    np.savez(sink, allow_pickle=False, **dict(arrays))
    return sink.getvalue()


def unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays again."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)


def _chunks(rows: NDArray[Any], size: int) -> Iterable[int]:
    chunks: list[int] = np.unique(rows // size).astype(int).tolist()
    return chunks
