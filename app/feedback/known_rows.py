"""The rows of users and items that a connection has met, so that storing their next events does not look them up.

Only an erasure takes a row away, and it or a list of earlier ones adds a tombstone. Each gives the version `deletions`
another number in its transaction, which overlaps with no transaction that stores events (`dirty_marks.ERASURE_LOCK`).
So who stores events says which version the given rows are of, and nothing is stored where another is in force; then
they are forgotten, and looked up again.

An item that is deleted keeps its row, but bumps the same version: that too costs each connection one more run of the
statement that stores, and then a look-up for each row that it meets again.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST_ROWS = 50_000
"""Of users, and as many of items. Per connection 13 MB with ids of 13 characters, 25 MB with the longest, of 128 ASCII
characters. All are forgotten when there are more."""


class KnownRows:
    """Of one connection, and as short-lived. No user with a tombstone is in it: each of their events is judged."""

    __slots__ = ("items", "users", "version")

    def __init__(self) -> None:
        self.version = ""
        """That `users` and `items` are of; empty where there are none."""
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}

    def learn(self, version: str, looked_up: Iterable[tuple[str | None, int, str | None, int]]) -> None:
        """version: in force when these were looked up: ids of a user and an item, each with its row; None for an id
        whose row was given.
        """
        if max(len(self.users), len(self.items)) > MOST_ROWS:
            self.forget()
        for user_id, user_row, item_id, item_row in looked_up:
            self.version = version
            if user_id is not None:
                self.users[user_id] = user_row
            if item_id is not None:
                self.items[item_id] = item_row

    def forget(self) -> None:
        """All of it."""
        self.version = ""
        self.users.clear()
        self.items.clear()
