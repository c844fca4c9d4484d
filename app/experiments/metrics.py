"""What a metric's name means: which events, added up how, of whom, and in which unit. Pure.

A name is one of NAMED, or `<kind of event>:<aggregate>`, like `share:count` or `listen:mean`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

from app.errors import Invalid
from app.settings import FEEDBACK_KINDS

Aggregate = Literal["count", "sum", "mean", "users", "count_per_session", "sum_per_session", "rate", "rate_on_screen"]

NAMED = {
    "ctr": "click:rate",
    "ctr_on_screen": "click:rate_on_screen",
    "like_rate": "like:rate",
    "like_rate_on_screen": "like:rate_on_screen",
    "likes_per_user": "like:count",
    "listening_time_per_session": "listen:sum_per_session",
    "mean_rating": "rating:mean",
}
"""What these names are short for."""
DEFAULT = ("ctr", "like_rate", "likes_per_user")
"""Where nobody says which."""

VALUED_KINDS = ("rating", "listen")
"""Kinds of event that carry a value."""
ON_SCREEN = "impression"
"""The kind that clients send of what was on screen; it is kept in a table of its own."""
_VALUE_UNITS = {"rating": "points, 0–5", "listen": "tracks heard"}
_UNITS: dict[Aggregate, str] = {
    "count": "{kind} events per user",
    "sum": "{value}, summed per user",
    "mean": "{value}, mean of all {kind} events",
    "users": "share of users with a {kind} event",
    "count_per_session": "{kind} events per session",
    "sum_per_session": "{value}, summed per session",
    "rate": "share of items shown that got a {kind} event",
    "rate_on_screen": "share of items on screen that got a {kind} event",
}
_OF_VALUES = ("sum", "mean", "sum_per_session")
_OF_SLATES = ("rate", "rate_on_screen")
_RATIOS = ("mean", "count_per_session", "sum_per_session", *_OF_SLATES)
_WINDOW = re.compile(r"(?P<number>[0-9]{1,4})(?P<unit>[hd])")
_LONGEST_HOURS = 365 * 24


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure per user: a count, or the two sides of a ratio.

    name:      as it was asked for
    kind:      of the events
    aggregate: `count`, `sum` of values, or `users` (1 for a user with at least one): a number per user.
               `mean` of values, `count_per_session`, `sum_per_session`: sums over all users, divided.
               `rate`, `rate_on_screen`: items that got such an event through the page they were shown on, of the
               items that the experiment's pages held, or of those that clients said were on screen.
    """

    name: str
    kind: str
    aggregate: Aggregate

    @property
    def is_of_slates(self) -> bool:
        """Whether it looks at what pages of the experiment brought, not at everything that its users did."""
        return self.aggregate in _OF_SLATES

    @property
    def is_ratio(self) -> bool:
        """Whether it divides one sum over users by another, instead of one sum by the number of users."""
        return self.aggregate in _RATIOS

    @property
    def is_per_session(self) -> bool:
        return self.aggregate in ("count_per_session", "sum_per_session")

    @property
    def unit(self) -> str:
        """Of the mean and of the difference, in words."""
        return _UNITS[self.aggregate].format(kind=self.kind, value=_VALUE_UNITS.get(self.kind, ""))


def metric_of(name: str) -> Metric:
    """Raises Invalid for a name that means nothing."""
    kind, _, aggregate = NAMED.get(name, name).partition(":")
    if kind not in FEEDBACK_KINDS or aggregate not in get_args(Aggregate):
        kinds, aggregates = ", ".join(FEEDBACK_KINDS), ", ".join(get_args(Aggregate))
        raise _refused(name, f"give one of {', '.join(NAMED)}, or KIND:AGGREGATE of {kinds} and {aggregates}")
    if aggregate in _OF_VALUES and kind not in VALUED_KINDS:
        raise _refused(name, f"only {' and '.join(VALUED_KINDS)} events have a value to take the {aggregate} of")
    if aggregate in _OF_SLATES and kind == ON_SCREEN:
        raise _refused(name, "a rate is of what people did with an item; being on screen is no such thing")
    return Metric(name, kind, aggregate)  # type: ignore[arg-type]  # one of the literals, as was just checked


def window_of(text: str) -> timedelta | None:
    """`12h`, `14d`; None for `all`, the whole experiment. Raises Invalid."""
    if text == "all":
        return None
    found = _WINDOW.fullmatch(text)
    if found is not None:
        hours = int(found["number"]) * (24 if found["unit"] == "d" else 1)
        if 0 < hours <= _LONGEST_HOURS:
            return timedelta(hours=hours)
    raise Invalid.field(("query", "window"), f"{text!r} is not a window; give 1h … 365d, or all")


def _refused(name: str, why: str) -> Invalid:
    return Invalid.field(("query", "metric"), f"{name!r} is not a metric: {why}")
