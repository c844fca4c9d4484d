"""What events that were pruned had added to the live counters: sums per item, of nobody.

The counters stay what they were: a recount is these sums and the events that are left. Kept in chunks of items as the
checkpoint keeps them, with nobody among the visitors: of each user and item the event of the last visit stays.
"""

from __future__ import annotations

import numpy as np
from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from app.live.checkpoint import ITEMS_PER_CHUNK, packed, unpacked
from app.storage.tables import live_pruned
from models.live.changes import Changes, Events, changes_between
from models.live.state import LiveState


def load(db: Connection) -> LiveState:
    """A live state of nothing but these sums, to go on counting in."""
    return _state(db, select(live_pruned.c.number, live_pruned.c.data))


def add(db: Connection, events: Events) -> None:
    """Adds what these events count, in the transaction that deletes them: all events of their users, items and days."""
    counted = changes_between(events)
    numbers: list[int] = np.unique(counted.counted_items // ITEMS_PER_CHUNK).tolist()
    touched = live_pruned.c.number.in_(numbers)
    state = _state(db, select(live_pruned.c.number, live_pruned.c.data).where(touched))
    state.fold(Changes(counted.counted_items, counted.counted_masses, counted.counted_at))
    for number in numbers:
        data = packed(state.item_parts(number * ITEMS_PER_CHUNK, (number + 1) * ITEMS_PER_CHUNK))
        chunk = insert(live_pruned).values(number=number, data=data)
        db.execute(chunk.on_conflict_do_update(index_elements=["number"], set_={"data": chunk.excluded.data}))


def _state(db: Connection, chunks: object) -> LiveState:
    state = LiveState()
    for number, data in db.execute(chunks):  # type: ignore[call-overload]
        state.restore_items(number * ITEMS_PER_CHUNK, unpacked(data))
    return state
