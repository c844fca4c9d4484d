"""What users had heard before a session began: the past that a player's question brings along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.contracts import Positions, Scores
from models.data.sessions import Sessions

LONGEST_PAST = 200
"""The latest listens before a session that anybody looks back at."""


@dataclass(frozen=True, slots=True)
class Pasts:
    """Of the sessions that follow others in time.

    tracks, fractions: of all sessions, the earlier ones first
    users:  int32[n], whose each listen is, ascending; those of one user in order
    listen: int64[n], the place of each of these among `tracks`
    begins: int64[s], the place at which each of the following sessions begins
    of:     int32[s], whose each of them is
    """

    tracks: Positions
    fractions: Scores
    users: NDArray[np.int32]
    listen: NDArray[np.int64]
    begins: NDArray[np.int64]
    of: NDArray[np.int32]

    def before(self, session: int) -> tuple[Positions, Scores]:
        """Tracks and fractions of the same user's sessions that began earlier, the latest last, each track once.

        Where a user has two sessions at a time, all of the one that began first, for sessions have no times here.
        """
        first, end = np.searchsorted(self.users, [self.of[session], self.of[session] + 1])
        end = first + np.searchsorted(self.listen[first:end], self.begins[session])
        heard = self.listen[max(first, end - LONGEST_PAST) : end]
        _, last = np.unique(self.tracks[heard][::-1], return_index=True)
        kept = heard[len(heard) - 1 - np.sort(last)[::-1]]
        return self.tracks[kept], self.fractions[kept]

    @classmethod
    def between(cls, earlier: Sessions, following: Sessions) -> Pasts | None:
        """None where nobody knows whose the sessions are."""
        if earlier.users is None or following.users is None:
            return None
        user = np.concatenate([earlier.users[earlier.of_listen], following.users[following.of_listen]])
        listen = np.argsort(user, kind="stable")
        return cls(
            np.concatenate([earlier.tracks, following.tracks]),
            np.concatenate([earlier.fractions, following.fractions]),
            user[listen],
            listen,
            following.bounds[:-1] + len(earlier.tracks),
            following.users,
        )
