"""What the users of each arm did, from Postgres into one number, or the two sides of a ratio, per user.

Postgres adds up; one row per user comes back, in its binary format. Everything that users did is read once for all
metrics of users, and once for all metrics of slates.

An event's time is the earlier of its timestamp and of when it was received, so that a clock that runs ahead counts
right. One that lags can't be told from an event that was sent late: it counts when its timestamp says, in both arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from app.experiments.metrics import ON_SCREEN, Metric
from app.experiments.population import ELIGIBLE, Scope
from app.experiments.statistics import Outcomes
from app.storage.copy_out import copy_out

_WORK_MEMORY = "64MB"
"""For sorting and hashing a million events without the disk."""

# Tables, for the planner has to know how many users there are: what it guessed of the same as a part of one statement
# took it through loops for half a minute. No timestamp is more than 5 minutes ahead of its receipt. The time before is
# as long as the user was watched, and ends with the first exposure. A user of whom nothing is known from then or before
# has no past, which is another thing than having done nothing lately.
_WATCH = f"""
DROP TABLE IF EXISTS pg_temp.watched, pg_temp.page;
CREATE TEMP TABLE watched ON COMMIT DROP AS
SELECT eligible.*, users.row AS user_row,
    CASE WHEN %(with_before)s THEN exposed_at - (watched_to - exposed_at) ELSE exposed_at END AS watched_from,
    %(with_before)s AND EXISTS (
        SELECT FROM interactions WHERE user_row = users.row AND "timestamp" < exposed_at + interval '5 minutes'
            AND least("timestamp", received_at) < exposed_at) AS has_past
FROM ({ELIGIBLE}) AS eligible LEFT JOIN users USING (user_id);
ANALYZE watched
"""  # noqa: S608 - constants and the words of app.experiments.metrics, here and below

# A page counts by what it says itself: the arm, and that it was shown in this run and while the user was watched.
_TAKE_PAGES = """
CREATE TEMP TABLE page ON COMMIT DROP AS
SELECT watched.user_id, user_row, request_id, item_rows, is_after, exposed_at, watched_to
FROM watched JOIN impressions USING (user_id) CROSS JOIN LATERAL (
    SELECT variants ->> %(experiment)s IS NOT DISTINCT FROM variant AND shown_at >= %(started_at)s AS is_after
) AS told
WHERE shown_at < watched_to AND shown_at >= least(watched_from, %(started_at)s) AND (is_after OR
    %(with_before)s AND shown_at < exposed_at AND shown_at >= watched_from
    AND (%(any_surface)s OR surface = %(surface)s));
ANALYZE page
"""

_DONE = """
SELECT user_row, kind, value, session_id, request_id, item_row, "timestamp", received_at FROM interactions
"""
_SEEN_OR_DONE = f"""
{_DONE} UNION ALL
SELECT user_row, '{ON_SCREEN}', NULL, session_id, request_id, item_row, "timestamp", received_at FROM on_screen
"""  # noqa: S608

# The condition on the bare timestamp follows from the ones after it and has an index.
_OF_USERS = """
WITH act AS (
    SELECT user_row, kind, value, session_id, least("timestamp", received_at) >= exposed_at AS is_after
    FROM watched JOIN ({source}) AS done USING (user_row)
    WHERE {kinds} AND "timestamp" >= %(earliest)s
        AND least("timestamp", received_at) >= watched_from AND least("timestamp", received_at) < watched_to
), summed AS (
    SELECT user_row, {sums} FROM act GROUP BY user_row
)
SELECT arm::int4, extract(epoch FROM watched_to)::float8, {columns} FROM watched LEFT JOIN summed USING (user_row)
"""
# What was shown before the exposure may be touched after it, and what was shown last after the user's window: then it
# counts in neither.
_OF_SLATES = """
WITH shown AS (
    SELECT user_id, {shown} FROM page GROUP BY user_id
), touched AS (
    SELECT user_row, is_after, {touches}
    FROM page JOIN ({source}) AS done USING (user_row, request_id)
    WHERE {kinds} AND item_row = ANY(item_rows) AND "timestamp" >= %(earliest)s
        AND least("timestamp", received_at) < CASE WHEN is_after THEN watched_to ELSE exposed_at END
    GROUP BY user_row, is_after, request_id, item_row
), summed AS (
    SELECT user_row, {sums} FROM touched GROUP BY user_row
)
SELECT arm::int4, extract(epoch FROM watched_to)::float8, {columns}
FROM watched LEFT JOIN shown USING (user_id) LEFT JOIN summed USING (user_row)
"""


class Settled(NamedTuple):
    """The outcomes of one arm, and since when each user's are final: float64[users], Unix seconds."""

    outcomes: Outcomes
    since: NDArray[np.float64]


def outcomes_of(
    db: Connection, scope: Scope, metrics: Sequence[Metric], *, with_before: bool = True
) -> dict[str, list[Outcomes]]:
    """By name of the metric: the outcomes of each arm's users, in the order of the experiment's variants.

    with_before: also what the same users did in as long a time before their first exposure. NaN for a user of whom
    nothing is known from before it.
    """
    found: dict[str, list[Outcomes]] = {}
    parameters = _watch(db, scope, with_before)
    for some in _by_statement(metrics):
        arms = _read(db, scope, some, parameters)
        for number, metric in enumerate(some):
            found[metric.name] = [_outcomes(of_arm, number, is_ratio=metric.is_ratio) for of_arm in arms]
    return {metric.name: found[metric.name] for metric in metrics}


def settled_outcomes(db: Connection, scope: Scope, metric: Metric, *, with_before: bool = True) -> list[Settled]:
    """Of each arm, in a scope with a window: whoever is in it is final, so that one scan tells of every day."""
    arms = _read(db, scope, [metric], _watch(db, scope, with_before))
    return [Settled(_outcomes(arm, 0, is_ratio=metric.is_ratio), np.ascontiguousarray(arm["final"])) for arm in arms]


def _by_statement(metrics: Sequence[Metric]) -> list[list[Metric]]:
    of_users = [metric for metric in metrics if not metric.is_of_slates]
    of_slates = [metric for metric in metrics if metric.is_of_slates]
    return [some for some in (of_users, of_slates) if some]


def _watch(db: Connection, scope: Scope, with_before: bool) -> dict[str, Any]:
    """Makes the table of who is watched from when to when; the parameters of what is built on it."""
    experiment = scope.experiment
    parameters = scope.parameters() | {
        "with_before": with_before,
        "started_at": scope.started_at,
        "surface": experiment.surface,
        "any_surface": experiment.holdout,
    }
    db.exec_driver_sql(f"SET LOCAL work_mem = '{_WORK_MEMORY}'")
    _one_by_one(db, _WATCH, parameters)
    earliest = db.exec_driver_sql("SELECT min(watched_from) FROM watched").scalar_one()
    return parameters | {"earliest": earliest}


def _one_by_one(db: Connection, statements: str, parameters: Mapping[str, Any]) -> None:
    """Postgres' statement_timeout is of each statement anyway: sent alone, each gets the time that is left."""
    for statement in statements.split(";"):
        db.exec_driver_sql(statement, parameters)


def _read(
    db: Connection, scope: Scope, metrics: Sequence[Metric], parameters: Mapping[str, Any]
) -> list[NDArray[np.void]]:
    """For each arm a row per user; the metrics are all of users or all of slates."""
    with_before = parameters["with_before"]
    if metrics[0].is_of_slates:
        _one_by_one(db, _TAKE_PAGES, parameters)
        statement = _statement_of_slates(metrics, with_before)
    else:
        statement = _statement_of_users(metrics, with_before)
    # COPY goes past SQLAlchemy, and past whoever set a limit on each of its statements; this one takes the limit along.
    db.exec_driver_sql(f"SET LOCAL work_mem = '{_WORK_MEMORY}'")
    read = copy_out(db, statement, parameters, _dtype(metrics, with_before))
    return [read[read["arm"] == arm] for arm in range(len(scope.experiment.variants))]


def _statement_of_users(metrics: Sequence[Metric], with_before: bool) -> str:
    kinds = {metric.kind for metric in metrics}
    with_sessions = any(metric.is_per_session for metric in metrics)
    return _OF_USERS.format(
        source=_SEEN_OR_DONE if ON_SCREEN in kinds else _DONE,
        kinds=f"({_in(kinds)} OR session_id IS NOT NULL)" if with_sessions else _in(kinds),
        sums=", ".join(
            f"{sum_} AS {name}"
            for number, metric in enumerate(metrics)
            for name, sum_ in zip(_names(number, with_before), _user_sums(metric, with_before), strict=True)
        ),
        columns=_columns(metrics, with_before),
    )


def _statement_of_slates(metrics: Sequence[Metric], with_before: bool) -> str:
    """Of each item of each page whether it got such an event, and whether it was on screen; then how many."""
    of_screen = any(metric.aggregate == "rate_on_screen" for metric in metrics)
    kinds = {metric.kind for metric in metrics} | ({ON_SCREEN} if of_screen else set())
    times = (("after", "is_after"), ("before", "NOT is_after"))[: 2 if with_before else 1]
    sums = []
    for time, when in times:
        for number, metric in enumerate(metrics):
            seen = " AND got_impression" if metric.aggregate == "rate_on_screen" else ""
            sums.append(f"count(*) FILTER (WHERE got_{metric.kind} AND {when}{seen}) AS n{number}_{time}")
            if seen:
                sums.append(f"count(*) FILTER (WHERE got_impression AND {when}) AS d{number}_{time}")
    return _OF_SLATES.format(
        shown=", ".join(f"sum(cardinality(item_rows)) FILTER (WHERE {when}) AS shown_{time}" for time, when in times),
        touches=", ".join(f"bool_or(kind = '{kind}') AS got_{kind}" for kind in sorted(kinds)),
        source=_SEEN_OR_DONE if of_screen else _DONE,
        kinds=_in(kinds),
        sums=", ".join(sums),
        columns=_columns(metrics, with_before),
    )


def _user_sums(metric: Metric, with_before: bool) -> list[str]:
    """Above and below the line, after the exposure and, if asked, before it."""
    found = []
    # Another metric may have brought in what was on screen, whose sessions are no business of this one.
    of_session = "" if metric.kind == ON_SCREEN else f" AND kind <> '{ON_SCREEN}'"
    for when in ("is_after", "NOT is_after")[: 2 if with_before else 1]:
        own = f"FILTER (WHERE kind = '{metric.kind}' AND {when})"
        in_sessions = f"FILTER (WHERE kind = '{metric.kind}' AND session_id IS NOT NULL AND {when})"
        sessions = f"count(DISTINCT session_id) FILTER (WHERE {when}{of_session})"
        match metric.aggregate:
            case "count":
                found += [f"count(*) {own}", "1"]
            case "sum":
                found += [f"sum(value) {own}", "1"]
            case "mean":
                found += [f"sum(value) {own}", f"count(value) {own}"]
            case "users":
                found += [f"least(count(*) {own}, 1)", "1"]
            case "count_per_session":
                found += [f"count(*) {in_sessions}", sessions]
            case "sum_per_session":
                found += [f"sum(value) {in_sessions}", sessions]
    return found


def _names(number: int, with_before: bool) -> list[str]:
    names = [f"n{number}_after", f"d{number}_after", f"n{number}_before", f"d{number}_before"]
    return names if with_before else names[:2]


def _columns(metrics: Sequence[Metric], with_before: bool) -> str:
    """In the order of `_dtype`. What was shown is the same for every rate, and no sum over events."""
    columns = []
    for number, metric in enumerate(metrics):
        for name in _names(number, with_before):
            time = name.rpartition("_")[2]
            is_shown = metric.aggregate == "rate" and name.startswith("d")
            columns.append(_or_none(f"shown_{time}" if is_shown else name, time))
    return ", ".join(columns)


def _or_none(column: str, time: str) -> str:
    """Zero for a user who did nothing; NaN before the exposure of a user without a past."""
    value = f"coalesce({column}, 0)::float8"
    return value if time == "after" else f"CASE WHEN has_past THEN {value} ELSE 'NaN' END"


def _in(kinds: Iterable[str]) -> str:
    listed = ", ".join(f"'{kind}'" for kind in sorted(kinds))
    return f"kind IN ({listed})"


def _dtype(metrics: Sequence[Metric], with_before: bool) -> np.dtype[np.void]:
    names = [name for number in range(len(metrics)) for name in _names(number, with_before)]
    return np.dtype([("arm", np.int32), ("final", np.float64), *((name, np.float64) for name in names)])


def _outcomes(of_arm: NDArray[np.void], number: int, *, is_ratio: bool) -> Outcomes:
    known = {name: np.ascontiguousarray(of_arm[name]) for name in of_arm.dtype.names or ()}
    return Outcomes(
        numerator=known[f"n{number}_after"],
        denominator=known[f"d{number}_after"] if is_ratio else None,
        before_numerator=known.get(f"n{number}_before"),
        before_denominator=known.get(f"d{number}_before") if is_ratio else None,
    )
