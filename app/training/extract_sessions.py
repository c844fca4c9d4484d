"""Reads listening sessions from Postgres: what recommenders of the next track learn from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from app.storage.copy_out import copy_out
from app.training.extract import Extracted, before_erasure, erased_users
from models.data.sessions import Sessions

FEWEST_SESSIONS = 200
"""Fewer say nothing that the co-visits of the moment don't say."""

_LISTEN = np.dtype(
    [("session", np.int64), ("user", np.int32), ("item", np.int32), ("fraction", np.float32), ("time", np.int64),
     ("seq", np.int64)]
)  # fmt: skip

# Session ids are unique across users; a user's row beside the digest keeps two apart even where digests meet.
_SELECT_LISTENS = """
    select hashtextextended(session_id, 0), user_row, item_row, coalesce(value, 'NaN')::float4,
        least(timestamp, received_at), seq
    from interactions where kind = 'listen' and session_id is not null
"""


def extract_sessions(engine: Engine, extracted: Extracted) -> Sessions | None:
    """The sessions of users that were extracted, by the same positions; None where there are too few to learn from.

    Tracks are in the order of their times, sessions in that of their beginnings. What was heard since the extraction
    comes too: it names no item that the extraction lacks.
    """
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.begin() as db:
        db.execute(text("set local statement_timeout = 0"))
        listens = copy_out(db, _SELECT_LISTENS, {}, _LISTEN)
        erased = erased_users(db)
    known = np.isin(listens["item"], extracted.row_of_position) & np.isin(listens["user"], extracted.row_of_user)
    listens = listens[known & ~before_erasure(listens, erased)]
    listens = listens[np.lexsort((listens["seq"], listens["time"]))]
    if not len(listens):
        return None
    _, first, session = np.unique(listens[["user", "session"]], return_index=True, return_inverse=True)
    if len(first) < FEWEST_SESSIONS:
        return None
    began = first[session]
    order = np.argsort(began, kind="stable")
    positions = np.searchsorted(extracted.row_of_position, listens["item"][order]).astype(np.int32)
    fractions = np.clip(listens["fraction"][order], 0, 1)
    return Sessions.of(
        began[order], positions, fractions, extracted.dataset.n_items,
        user_of=listens["user"][order], artists=_artists(extracted.dataset.items.creators),
    )  # fmt: skip


def _artists(creators: list[str | None]) -> NDArray[np.int32]:
    """int32[n_items]: a number for each artist, -1 for none."""
    number_of = {name: nth for nth, name in enumerate(dict.fromkeys(creators)) if name is not None}
    return np.array([-1 if name is None else number_of[name] for name in creators], np.int32)
