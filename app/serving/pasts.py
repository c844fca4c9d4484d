"""A user's past by the positions of one release."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from app.feedback.user_view import UserView
from models.artifacts import RowMap
from models.contracts import History, Positions


class Past(NamedTuple):
    """What a user did, as far as a release knows the items.

    seen: int32[k], positions
    """

    history: History
    seen: Positions


NO_PAST = Past(History.empty(), np.empty(0, np.int32))


class Pasts:
    """Those of one release's positions. Each is kept while its view is, and all of them no longer than this object."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[UserView, Past] = WeakKeyDictionary()

    def of(self, view: UserView, rows: RowMap) -> Past:
        """rows: the same each time. The very same past for the same view: recommenders keep what they made of one."""
        past = self._of.get(view)
        if past is None:
            positions, seen = rows.positions_of(view.rows), rows.positions_of(view.seen)
            history = History(positions, view.weights, view.signs, view.timestamps)
            past = self._of[view] = Past(history.take(positions >= 0), seen[seen >= 0])
        return past
