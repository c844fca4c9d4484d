"""The pages whose order was drawn, read from Postgres with what people did on them, in batches of arrays.

First pages of slates only: whether somebody asks for a second depends on what was on the first. What a listening
session is given is drawn in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, text

from models.evaluation.off_policy.log import WrongLog

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BATCH = 500
NO_ITEM = -1


@dataclass(frozen=True, slots=True)
class Selection:
    """Which pages, and what counts as success.

    since, until: of the time shown, until exclusive
    metric: a kind of event; a place earns 1 where its item got at least one by the user with the page's request id
    places: of each page, from the top, pins included
    """

    since: datetime
    until: datetime
    metric: str
    places: int
    surface: str | None = None
    route: str | None = None


@dataclass(frozen=True, slots=True)
class Pages:
    """m drawn pages, of which the longest had c candidates.

    request_ids, user_ids: [m]
    candidates:   int64[m, c], item rows in the order without exploration, NO_ITEM behind a shorter list
    logits:       float64[m, c], that the draw was made with, -inf behind a shorter list
    temperatures: float64[m]
    chosen:       int64[m, places], index among the candidates, NO_ITEM at pins and behind a shorter page
    pinned:       bool[m, places]
    propensities: float64[m, places], as written down when the page was served; NaN where nothing was drawn
    rewards:      float64[m, places]
    """

    request_ids: Sequence[str]
    user_ids: Sequence[str]
    candidates: Ints
    logits: Floats
    temperatures: Floats
    chosen: Ints
    pinned: NDArray[np.bool_]
    propensities: Floats
    rewards: Floats


_SELECTED = """
    impressions.first_position = 1 AND impressions.exploration->'draw'->>'policy' = 'plackett_luce'
    AND jsonb_array_length(impressions.exploration->'draw'->'candidates') > 0
    AND impressions.shown_at >= :since AND impressions.shown_at < :until
    AND (CAST(:surface AS text) IS NULL OR impressions.surface = :surface)
    AND (CAST(:route AS text) IS NULL OR impressions.route = :route)
"""
_EARNED = text(
    f"""
    SELECT DISTINCT request_id, interactions.item_row FROM interactions
    JOIN impressions USING (request_id) JOIN users ON users.row = interactions.user_row
    WHERE interactions.kind = :metric AND users.user_id = impressions.user_id AND {_SELECTED}
    """  # noqa: S608 - put together from constants
)
_PAGES = text(
    f"""
    SELECT request_id, user_id, item_rows[1:CAST(:places AS int)] AS item_rows,
           propensities[1:CAST(:places AS int)] AS propensities,
           CAST((exploration->'draw') - CAST('scores' AS text) AS text) AS draw
    FROM impressions WHERE {_SELECTED} ORDER BY shown_at, request_id
    """  # noqa: S608 - put together from constants
)
_FIRST = text(f"SELECT min(shown_at) FROM impressions WHERE {_SELECTED}")  # noqa: S608 - put together from constants


def first_shown(db: Connection, selection: Selection) -> datetime | None:
    """When the first of the pages was shown; None where there are none."""
    found: datetime | None = db.execute(_FIRST, _parameters(selection)).scalar_one()
    return found


def read_pages(db: Connection, selection: Selection) -> Iterator[Pages]:
    """In the order shown. Raises WrongLog where a page holds what its draw had not among its candidates."""
    earned: dict[str, set[int]] = {}
    for request_id, item_row in db.execute(_EARNED, _parameters(selection) | {"metric": selection.metric}):
        earned.setdefault(request_id, set()).add(item_row)
    parameters = _parameters(selection) | {"places": selection.places}
    streamed = db.execution_options(stream_results=True, max_row_buffer=BATCH).execute(_PAGES, parameters)
    for rows in streamed.partitions(BATCH):
        yield _as_arrays(rows, earned, selection.places)


def _parameters(selection: Selection) -> dict[str, Any]:
    return {
        "since": selection.since,
        "until": selection.until,
        "surface": selection.surface,
        "route": selection.route,
    }


def _as_arrays(rows: Sequence[Row[Any]], earned: dict[str, set[int]], places: int) -> Pages:
    draws = [orjson.loads(row.draw) for row in rows]
    widest = max(len(draw["candidates"]) for draw in draws)
    pages = Pages(
        request_ids=[row.request_id for row in rows],
        user_ids=[row.user_id for row in rows],
        candidates=np.full((len(rows), widest), NO_ITEM),
        logits=np.full((len(rows), widest), -np.inf),
        temperatures=np.array([draw["temperature"] for draw in draws], np.float64),
        chosen=np.full((len(rows), places), NO_ITEM),
        pinned=np.zeros((len(rows), places), np.bool_),
        propensities=np.full((len(rows), places), np.nan),
        rewards=np.zeros((len(rows), places)),
    )
    for i, (row, draw) in enumerate(zip(rows, draws, strict=True)):
        candidates, shown = draw["candidates"], row.item_rows
        index = {item: number for number, item in enumerate(candidates)}
        pages.candidates[i, : len(candidates)] = candidates
        pages.logits[i, : len(candidates)] = draw["logits"]
        pages.pinned[i, : len(shown)] = [propensity is None for propensity in row.propensities]
        pages.propensities[i, : len(shown)] = [
            np.nan if propensity is None else propensity for propensity in row.propensities
        ]
        pages.rewards[i, : len(shown)] = [item in earned.get(row.request_id, ()) for item in shown]
        for place, (item, propensity) in enumerate(zip(shown, row.propensities, strict=True)):
            if propensity is not None:
                pages.chosen[i, place] = _among(index, item, row.request_id)
    return pages


def _among(index: dict[int, int], item: int, request_id: str) -> int:
    if item not in index:
        raise WrongLog(f"the page {request_id} shows the item of row {item}, which its draw did not have")
    return index[item]
