"""Whom a result speaks of: the users who were exposed, in which arm, and who of them is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from app.experiments.definitions import Experiment

MARKS = ("forced", "bot", "explored")
"""What takes a user out of the results, unless asked otherwise. `fallback` does not: who was answered by another
recommender than the arm's stays in the arm, or the arm would choose its own sample."""
TWO_VARIANTS = "two_variants"
WAITING = "waiting"

_LONGEST_HOURS = 24 * 365 * 100


@dataclass(frozen=True, slots=True)
class Scope:
    """Which exposures and events count.

    started_at: of this run
    until:    the moment the result is of: what comes after does not count. The end of an experiment that was stopped
    window:   how long after the first exposure a user is watched; None: until `until`
    included: those of MARKS that are analysed all the same
    """

    experiment: Experiment
    started_at: datetime
    until: datetime
    window: timedelta | None = None
    included: frozenset[str] = frozenset()

    @property
    def is_final(self) -> bool:
        """Whether a user's figure is final a set time after the first exposure, but for events that arrive late.

        Without a window it is when the experiment stops, a moment that someone may have chosen by looking.
        """
        return self.window is not None

    def parameters(self) -> dict[str, Any]:
        """For the statements that are built on ELIGIBLE."""
        return {
            "experiment": self.experiment.key,
            "run": self.experiment.run,
            "variants": [variant.name for variant in self.experiment.variants],
            "until": self.until,
            "window": timedelta(hours=_LONGEST_HOURS) if self.window is None else self.window,
            "whole": self.window is None,
            "left_out": [mark for mark in MARKS if mark not in self.included],
        }


@dataclass(frozen=True, slots=True)
class Population:
    """Numbers of users.

    in_arms:  by variant, all in one arm only and not left out; what the sample ratio is of
    waiting:  by variant, those of them whose window is not over: they are not in the figures
    last:     by variant, the latest first exposure of those who wait; absent where nobody does
    by:       for `day` (UTC, of the first exposure), `route` and `worker`: by value, the users by variant
    left_out: users by reason: `two_variants`, and of MARKS the first that holds
    """

    in_arms: Mapping[str, int]
    waiting: Mapping[str, int]
    by: Mapping[str, Mapping[str, Mapping[str, int]]]
    left_out: Mapping[str, int]
    last: Mapping[str, datetime]

    @property
    def users(self) -> int:
        """Of all arms."""
        return sum(self.in_arms.values())


ELIGIBLE = """
    SELECT user_id, array_position(%(variants)s::text[], min(variant)) - 1 AS arm, min(variant) AS variant,
        min(exposed_at) AS exposed_at, least(min(exposed_at) + %(window)s, %(until)s) AS watched_to
    FROM exposures WHERE experiment = %(experiment)s AND run = %(run)s AND exposed_at < %(until)s
    GROUP BY user_id
    HAVING count(*) = 1 AND NOT min(marks) && %(left_out)s::text[]
        AND (%(whole)s OR min(exposed_at) + %(window)s <= %(until)s)
"""
"""The users who are in the figures; exposed in one variant, they have one row, of which `min` takes what is there."""

_COUNTED = """
    SELECT variant, day, route, worker, reason, count(*) AS users, max(exposed_at) AS last FROM (
        SELECT min(variant) AS variant, (min(exposed_at) AT TIME ZONE 'UTC')::date AS day, min(route) AS route,
            min(worker) AS worker, min(exposed_at) AS exposed_at,
            CASE WHEN count(*) > 1 THEN 'two_variants'
                WHEN min(marks) && %(left_out)s::text[] THEN
                    (SELECT mark FROM unnest(%(left_out)s::text[]) WITH ORDINALITY AS each (mark, number)
                     WHERE mark = ANY(min(marks)) ORDER BY number LIMIT 1)
                WHEN NOT %(whole)s AND min(exposed_at) + %(window)s > %(until)s THEN 'waiting'
                ELSE '' END AS reason
        FROM exposures WHERE experiment = %(experiment)s AND run = %(run)s AND exposed_at < %(until)s
        GROUP BY user_id
    ) AS exposed GROUP BY variant, day, route, worker, reason
"""


def population_of(db: Connection, scope: Scope) -> Population:
    """Counts the exposures of the run; users who were erased have none any more."""
    names = [variant.name for variant in scope.experiment.variants]
    in_arms, waiting, left_out = Counter[str](), Counter[str](), Counter[str]()
    last: dict[str, datetime] = {}
    by: dict[str, dict[str, Counter[str]]] = {"day": {}, "route": {}, "worker": {}}
    for found in db.exec_driver_sql(_COUNTED, scope.parameters()):
        if found.reason not in ("", WAITING):
            left_out[found.reason] += found.users
            continue
        in_arms[found.variant] += found.users
        if found.reason == WAITING:
            waiting[found.variant] += found.users
            last[found.variant] = max(found.last, last.get(found.variant, found.last))
        for what, value in (("day", found.day), ("route", found.route), ("worker", found.worker)):
            by[what].setdefault(_text(value), Counter())[found.variant] += found.users
    return Population(
        in_arms={name: in_arms[name] for name in names},
        waiting={name: waiting[name] for name in names},
        by={what: _ordered(what, found, names) for what, found in by.items()},
        left_out={reason: left_out[reason] for reason in (TWO_VARIANTS, *scope.parameters()["left_out"])},
        last=last,
    )


def lost_exposures(db: Connection, experiment: Experiment) -> dict[str, int]:
    """By variant: exposures that happened and could not be written down."""
    found = db.exec_driver_sql(
        "SELECT variant, sum(lost)::bigint FROM exposure_losses"
        " WHERE experiment = %(experiment)s AND run = %(run)s GROUP BY variant",
        {"experiment": experiment.key, "run": experiment.run},
    )
    lost: dict[str, int] = {variant: count for variant, count in found}
    return {variant.name: lost.get(variant.name, 0) for variant in experiment.variants}


def _text(value: date | str) -> str:
    return value.isoformat() if isinstance(value, date) else value


def _ordered(what: str, found: Mapping[str, Counter[str]], names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Days in their order; else the value with most users first."""
    values = sorted(found, key=lambda value: (value if what == "day" else "", -found[value].total(), value))
    listed = list(names)
    return {value: {name: found[value][name] for name in listed} for value in values}
