"""Liking by state rather than by event: the event that brings a wanted state about, and none where it holds."""

from __future__ import annotations

from hashlib import sha256

import orjson
from sqlalchemy import Connection

from app.feedback.event_log import LIKE_KINDS
from app.feedback.events import Event

STATE = """
    SELECT EXISTS (SELECT FROM likes WHERE user_row = users.row AND item_row = items.row) AS liked,
        (SELECT max(seq) FROM interactions
         WHERE user_row = users.row AND item_row = items.row AND kind = ANY(%(kinds)s)) AS last_decision
    FROM users CROSS JOIN items WHERE user_id = %(user_id)s AND item_id = %(item_id)s
"""


def deciding_event(db: Connection, user_id: str, item_id: str, *, liked: bool) -> Event | None:
    """The `like` or `unlike` after which the user likes the item or doesn't; None where that is so already.

    Its id follows from the decision before it, so of several requests that want the same at once, or of a request
    and its retry, one is stored.
    """
    parameters = {"user_id": user_id, "item_id": item_id, "kinds": sorted(LIKE_KINDS)}
    state = db.exec_driver_sql(STATE, parameters).one_or_none()
    if (state is not None and state.liked) == liked:
        return None
    kind = "like" if liked else "unlike"
    follows = orjson.dumps([user_id, item_id, kind, state.last_decision if state else None])
    return Event(f"{kind}:{sha256(follows).hexdigest()[:32]}", user_id, item_id, kind, None, None)
