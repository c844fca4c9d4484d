"""What the users of each arm did, from Postgres into one number, or the two sides of a ratio, per user.

Postgres adds up; one row per user comes back, in its binary format. Everything that users did is read once for all
metrics of users, and once for all metrics of slates.

An event's time is the earlier of its timestamp and of when it was received, so that a clock that runs ahead counts
right. One that lags can't be told from an event that was sent late: it counts when its timestamp says, in both arms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from app.experiments.metrics import ON_SCREEN, Metric
from app.experiments.population import ELIGIBLE, Scope
from app.experiments.statistics import Outcomes
from app.storage.copy_out import copy_out

# No timestamp is more than 5 minutes ahead of its receipt. What is `before` is as long as the user was watched, and it
# ends with the first exposure. A user of whom nothing is known from then or earlier has no past, which is another thing
# than having done nothing lately.
_USERS = f"""
WITH eligible AS MATERIALIZED ({ELIGIBLE}), watched AS MATERIALIZED (
    SELECT eligible.*, users.row AS user_row,
        CASE WHEN %(with_before)s THEN exposed_at - (watched_to - exposed_at) ELSE exposed_at END AS watched_from,
        %(with_before)s AND EXISTS (
            SELECT FROM interactions WHERE user_row = users.row AND "timestamp" < exposed_at + interval '5 minutes'
                AND least("timestamp", received_at) < exposed_at) AS has_past
    FROM eligible LEFT JOIN users USING (user_id)
)
"""  # noqa: S608 - constants and the words of app.experiments.metrics, here and below

_DONE = """
SELECT user_row, kind, value, session_id, request_id, item_row, "timestamp", received_at FROM interactions
"""
_SEEN_OR_DONE = f"""
{_DONE} UNION ALL
SELECT user_row, '{ON_SCREEN}', NULL, session_id, request_id, item_row, "timestamp", received_at FROM on_screen
"""  # noqa: S608

# The condition on the bare timestamp follows from the one after it and has an index.
_OF_USERS = """
, act AS (
    SELECT user_row, kind, value, session_id,
        least("timestamp", received_at) >= exposed_at AS is_after
    FROM watched JOIN ({source}) AS done USING (user_row)
    WHERE {kinds} AND "timestamp" >= (SELECT min(watched_from) FROM watched)
        AND least("timestamp", received_at) >= watched_from AND least("timestamp", received_at) < watched_to
), summed AS (
    SELECT user_row, {sums} FROM act GROUP BY user_row
)
SELECT arm::int4, {columns} FROM watched LEFT JOIN summed USING (user_row)
"""

# A page counts by what it says itself: the arm, and that it was shown in this run and while the user was watched.
_OF_SLATES = """
, page AS MATERIALIZED (
    SELECT watched.user_id, user_row, request_id, item_rows, is_after
    FROM watched JOIN impressions USING (user_id) CROSS JOIN LATERAL (
        SELECT variants ->> %(experiment)s IS NOT DISTINCT FROM variant AND shown_at >= %(started_at)s AS is_after
    ) AS told
    WHERE shown_at < watched_to AND shown_at >= least(watched_from, %(started_at)s) AND (is_after OR
        %(with_before)s AND shown_at < exposed_at AND shown_at >= watched_from
        AND (%(any_surface)s OR surface = %(surface)s))
), shown AS (
    SELECT user_id, {shown} FROM page GROUP BY user_id
), looked_at AS MATERIALIZED (
    SELECT DISTINCT page.user_id, request_id, on_screen.item_row, is_after
    FROM page JOIN on_screen USING (user_row, request_id)
    WHERE {with_screen} AND on_screen.item_row = ANY(item_rows)
        AND on_screen."timestamp" >= (SELECT min(watched_from) FROM watched)
), on_screen_items AS (
    SELECT user_id, {seen} FROM looked_at GROUP BY user_id
), act AS (
    SELECT DISTINCT page.user_id, request_id, done.item_row, kind, is_after
    FROM page JOIN interactions AS done USING (user_row, request_id)
    WHERE {kinds} AND done.item_row = ANY(item_rows)
        AND done."timestamp" >= (SELECT min(watched_from) FROM watched)
), summed AS (
    SELECT act.user_id, {sums}
    FROM act LEFT JOIN looked_at USING (user_id, request_id, item_row, is_after) GROUP BY act.user_id
)
SELECT arm::int4, {columns}
FROM watched LEFT JOIN shown USING (user_id) LEFT JOIN on_screen_items USING (user_id) LEFT JOIN summed USING (user_id)
"""


def outcomes_of(
    db: Connection, scope: Scope, metrics: Sequence[Metric], *, with_before: bool = True
) -> dict[str, list[Outcomes]]:
    """By name of the metric: the outcomes of each arm's users, in the order of the experiment's variants.

    with_before: also what the same users did in as long a time before their first exposure. NaN for a user of whom
    nothing is known from before it.
    """
    found: dict[str, list[Outcomes]] = {}
    of_slates = [metric for metric in metrics if metric.is_of_slates]
    of_users = [metric for metric in metrics if not metric.is_of_slates]
    for some, statement in ((of_users, _statement_of_users), (of_slates, _statement_of_slates)):
        if some:
            read = copy_out(
                db, statement(some, with_before), _parameters(scope, with_before), _dtype(some, with_before)
            )
            found |= {metric.name: _by_arm(read, number, metric, scope) for number, metric in enumerate(some)}
    return {metric.name: found[metric.name] for metric in metrics}


def _parameters(scope: Scope, with_before: bool) -> dict[str, object]:
    experiment = scope.experiment
    return scope.parameters() | {
        "with_before": with_before,
        "started_at": scope.started_at,
        "surface": experiment.surface,
        "any_surface": experiment.holdout,
    }


def _statement_of_users(metrics: Sequence[Metric], with_before: bool) -> str:
    kinds = {metric.kind for metric in metrics}
    with_sessions = any(metric.is_per_session for metric in metrics)
    return _USERS + _OF_USERS.format(
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
    times = [("after", "is_after"), ("before", "NOT is_after")]
    sums, columns = [], []
    for number, metric in enumerate(metrics):
        is_on_screen = metric.aggregate == "rate_on_screen"
        screen = " AND looked_at.user_id IS NOT NULL" if is_on_screen else ""
        below = "seen" if is_on_screen else "shown"
        for time, condition in times[: 2 if with_before else 1]:
            sums.append(f"count(*) FILTER (WHERE kind = '{metric.kind}' AND {condition}{screen}) AS n{number}_{time}")
            columns += [_or_none(f"n{number}_{time}", time), _or_none(f"{below}_{time}", time)]
    return _USERS + _OF_SLATES.format(
        shown=", ".join(f"sum(cardinality(item_rows)) FILTER (WHERE {when}) AS shown_{time}" for time, when in times),
        seen=", ".join(f"count(*) FILTER (WHERE {when}) AS seen_{time}" for time, when in times),
        with_screen=str(any(metric.aggregate == "rate_on_screen" for metric in metrics)).lower(),
        kinds=_in({metric.kind for metric in metrics}),
        sums=", ".join(sums),
        columns=", ".join(columns),
    )


def _user_sums(metric: Metric, with_before: bool) -> list[str]:
    """Above and below the line, after the exposure and, if asked, before it."""
    found = []
    for when in ("is_after", "NOT is_after")[: 2 if with_before else 1]:
        own = f"FILTER (WHERE kind = '{metric.kind}' AND {when})"
        in_sessions = f"FILTER (WHERE kind = '{metric.kind}' AND session_id IS NOT NULL AND {when})"
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
                found += [f"count(*) {in_sessions}", f"count(DISTINCT session_id) FILTER (WHERE {when})"]
            case "sum_per_session":
                found += [f"sum(value) {in_sessions}", f"count(DISTINCT session_id) FILTER (WHERE {when})"]
    return found


def _names(number: int, with_before: bool) -> list[str]:
    names = [f"n{number}_after", f"d{number}_after", f"n{number}_before", f"d{number}_before"]
    return names if with_before else names[:2]


def _columns(metrics: Sequence[Metric], with_before: bool) -> str:
    names = [name for number in range(len(metrics)) for name in _names(number, with_before)]
    return ", ".join(_or_none(name, name.rpartition("_")[2]) for name in names)


def _or_none(column: str, time: str) -> str:
    """Zero for a user who did nothing; NaN before the exposure of a user without a past."""
    value = f"coalesce({column}, 0)::float8"
    return value if time == "after" else f"CASE WHEN has_past THEN {value} ELSE 'NaN' END"


def _in(kinds: Iterable[str]) -> str:
    listed = ", ".join(f"'{kind}'" for kind in sorted(kinds))
    return f"kind IN ({listed})"


def _dtype(metrics: Sequence[Metric], with_before: bool) -> np.dtype[np.void]:
    names = [name for number in range(len(metrics)) for name in _names(number, with_before)]
    return np.dtype([("arm", np.int32), *((name, np.float64) for name in names)])


def _by_arm(read: NDArray[np.void], number: int, metric: Metric, scope: Scope) -> list[Outcomes]:
    arms = [read[read["arm"] == arm] for arm in range(len(scope.experiment.variants))]
    return [_outcomes(of_arm, number, is_ratio=metric.is_ratio) for of_arm in arms]


def _outcomes(of_arm: NDArray[np.void], number: int, *, is_ratio: bool) -> Outcomes:
    known = {name: np.ascontiguousarray(of_arm[name]) for name in of_arm.dtype.names or ()}
    return Outcomes(
        numerator=known[f"n{number}_after"],
        denominator=known[f"d{number}_after"] if is_ratio else None,
        before_numerator=known.get(f"n{number}_before"),
        before_denominator=known.get(f"d{number}_before") if is_ratio else None,
    )
