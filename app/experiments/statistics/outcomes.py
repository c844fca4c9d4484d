"""What the users of one variant did: a number per user, or two whose totals make a ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.errors import Conflict

Floats = NDArray[np.float64]
ARRAYS = ("numerator", "denominator", "before_numerator", "before_denominator")


class NoComparison(Conflict):
    """The data allow no comparison yet; `detail` says what is missing."""

    title = "No comparison"


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """One metric of one variant. All arrays have one entry per exposed user, those who did nothing included.

    numerator:     what is counted or summed, after the first exposure
    denominator:   None: the metric is the numerator's mean over users. Else it is sum(numerator) / sum(denominator),
                   as clicks per impression are; users with a denominator of 0 stay in
    before_numerator, before_denominator:
                   the same before the first exposure; nan where a user has no such past
    is_complete:   whether the user's window has closed, so that their numbers can't change any more. It may depend
                   on the time of the first exposure and on nothing else. None: not known, and then nothing
                   always-valid can be said (docs/decisions/0018).
    """

    numerator: Floats
    denominator: Floats | None = None
    before_numerator: Floats | None = None
    before_denominator: Floats | None = None
    is_complete: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name in ARRAYS:
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _checked(name, given, len(self.numerator)))
        if self.is_complete is not None:
            object.__setattr__(self, "is_complete", np.asarray(self.is_complete, dtype=np.bool_))
            if self.is_complete.shape != self.numerator.shape:
                raise ValueError(f"is_complete has shape {self.is_complete.shape}, not {self.numerator.shape}")

    @property
    def users(self) -> int:
        return len(self.numerator)

    def complete(self) -> Outcomes:
        """Those users alone whose window has closed; all of them must be known to be either."""
        kept = self.is_complete
        if kept is None:
            raise ValueError("nothing is known of whose window has closed: is_complete is None")
        given = (name for name in ARRAYS if getattr(self, name) is not None)
        return replace(self, is_complete=None, **{name: getattr(self, name)[kept] for name in given})


def _checked(name: str, given: Floats, users: int) -> Floats:
    array = np.asarray(given, dtype=np.float64)
    if array.shape != (users,):
        raise ValueError(f"{name} has shape {array.shape}, not ({users},): one entry per user")
    if name.startswith("before"):
        wrong = np.isinf(array)
    elif math.isfinite(array.sum()):  # so is then each of them: quicker than to look at all
        return array
    else:
        wrong = ~np.isfinite(array)
    if wrong.any():
        raise NoComparison(f"{name} of user {int(wrong.argmax())} is {array[wrong.argmax()]}, no number to count with")
    return array
