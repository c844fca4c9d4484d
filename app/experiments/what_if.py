"""What another order of the drawn pages' candidates would have earned: the target policy, and the log it is judged on.

The log has every candidate of a page, so it can say of any order of the same candidates how likely it would have shown
what was shown. It can't say anything of items that were not among them, nor of what another recommender would have
brought.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from app.errors import Invalid
from app.experiments.explored import NO_ITEM, Pages, Selection, first_shown, read_pages
from models.evaluation.off_policy.log import MissingSupport, SlateLog, WrongLog
from models.evaluation.off_policy.plackett_luce import certain, marginals, walk

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RANKS = np.array([1, 2, 3, 4, 6, 9, 14, 22, 34])
"""Kinds of items for reward models and for the chi-square: the rank without exploration, up to each of these."""
KINDS = len(RANKS) + 3
PINNED, EMPTY = KINDS - 2, KINDS - 1
_SINGLE_PRECISION = 1e-4
"""Propensities are stored as 32-bit floats."""


@dataclass(frozen=True, slots=True)
class Target:
    """The policy that is asked about: it draws from the same candidates, in an order of its own.

    scores:      by item row, the highest first; items without one come last, as they were ranked. None: the order that
                 was served without exploration
    temperature: of the draw; 0 for no draw at all, None for the one that each page was drawn with
    """

    scores: Mapping[int, float] | None = None
    temperature: float | None = None

    def ranks(self, candidates: Ints) -> Floats:
        """float64[m, c], from 1; infinite where there is no candidate."""
        served = np.tile(np.arange(1.0, candidates.shape[1] + 1), (len(candidates), 1))
        if self.scores is not None:
            scores = self.scores
            known = np.array([[scores.get(item, -np.inf) for item in page] for page in candidates.tolist()])
            known[candidates == NO_ITEM] = np.nan
            order = np.argsort(-known, axis=1, kind="stable")
            np.put_along_axis(served, order, np.arange(1.0, candidates.shape[1] + 1)[None, :], axis=1)
        return np.where(candidates == NO_ITEM, np.inf, served)

    def logits(self, pages: Pages, ranks: Floats) -> Floats:
        """float64[m, c]. Of the policy that served, the very logits that were logged: its weights are 1 exactly."""
        if self.temperature == 0:
            return certain(ranks)
        temperatures = pages.temperatures if self.temperature is None else np.full(len(ranks), self.temperature)
        if self.scores is None:
            return pages.logits * (pages.temperatures / temperatures)[:, None]
        return np.asarray(-np.log(ranks) / temperatures[:, None])


def log_of(db: Connection, selection: Selection, target: Target) -> SlateLog:
    """The selected pages as a log of lists. Raises MissingSupport where there are none, WrongLog."""
    parts: list[dict[str, NDArray[Any]]] = []
    users: list[str] = []
    for pages in read_pages(db, selection):
        parts.append(_judged(pages, target))
        users += pages.user_ids
    if not parts:
        raise MissingSupport(
            "no page of that time was drawn: set SEGUE_EXPLORE_SHARE, and ask again when people were shown some"
        )
    _, numbers = np.unique(np.array(users), return_inverse=True)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return SlateLog(**joined, users=numbers.astype(np.int64))


def popularity_before(db: Connection, selection: Selection) -> dict[int, float]:
    """By item row: how many users did something with it before the first of the pages was shown.

    Not after: what was shown at the top is popular by then. Raises Invalid where nothing is known of before.
    """
    counted = text("SELECT item_row, count(DISTINCT user_row) FROM interactions WHERE timestamp < :first GROUP BY 1")
    found = {row: float(users) for row, users in db.execute(counted, {"first": first_shown(db, selection)})}
    if not found:
        raise Invalid("--order popularity: there are no events before the first drawn page; choose a later --since")
    return found


def newness(db: Connection) -> dict[int, float]:
    """By item row: when it was published, in unix seconds."""
    published = text("SELECT row, extract(epoch FROM published_at) FROM items WHERE published_at IS NOT NULL")
    return {row: float(seconds) for row, seconds in db.execute(published)}


def rows_of(db: Connection, scores: Mapping[str, float]) -> dict[int, float]:
    """Scores by item row instead of item id. Raises Invalid for an id that no item has."""
    known = text("SELECT item_id, row FROM items WHERE item_id = ANY(:ids)")
    rows = {item_id: row for item_id, row in db.execute(known, {"ids": list(scores)})}
    if unknown := sorted(scores.keys() - rows.keys()):
        raise Invalid(f"--scores: no item has the id {unknown[0]!r} ({len(unknown)} of {len(scores)} are unknown)")
    return {rows[item_id]: score for item_id, score in scores.items()}


def _judged(pages: Pages, target: Target) -> dict[str, NDArray[Any]]:
    """The arrays of a SlateLog, but for the users."""
    ranks = target.ranks(pages.candidates)
    kinds = _kinds(pages)
    logged, logged_kinds = _given_above(pages.logits, pages, kinds)
    _refuse_other_propensities(pages, logged)
    asked, target_kinds = _given_above(target.logits(pages, ranks), pages, kinds)
    if target.scores is None and target.temperature is None:
        target_marginals = _logged_marginals(pages)
    else:
        target_marginals = _target_marginals(pages, ranks, target.temperature)
    return {
        "rewards": pages.rewards,
        "logged": logged,
        "target": asked,
        "logged_marginals": _logged_marginals(pages),
        "target_marginals": target_marginals,
        "kinds": kinds,
        "logged_kinds": logged_kinds,
        "target_kinds": target_kinds,
    }


def _kinds(pages: Pages) -> Ints:
    kinds = np.searchsorted(RANKS, pages.chosen + 1)
    return np.where(pages.pinned, PINNED, np.where(pages.chosen == NO_ITEM, EMPTY, kinds)).astype(np.int64)


def _given_above(logits: Floats, pages: Pages, kinds: Ints) -> tuple[Floats, Floats]:
    """float64[m, places] of what was shown, and float64[m, places, KINDS] of what might have been."""
    m, places = pages.chosen.shape
    shown, by_kind = np.ones((m, places)), np.zeros((m, places, KINDS))
    of_candidate = np.eye(KINDS)[np.searchsorted(RANKS, np.arange(1, logits.shape[1] + 1))]
    every = np.arange(m)
    for place, probabilities in enumerate(walk(logits, pages.chosen)):
        drawn = pages.chosen[:, place] != NO_ITEM
        shown[drawn, place] = probabilities[drawn, pages.chosen[drawn, place]]
        by_kind[drawn, place] = probabilities[drawn] @ of_candidate
        by_kind[every[~drawn], place, kinds[~drawn, place]] = 1.0
    return shown, by_kind


def _logged_marginals(pages: Pages) -> Floats:
    found = np.ones(pages.chosen.shape)
    for which, count in _alike(pages):
        table = marginals(pages.logits[which[0], :count], pages.chosen.shape[1])
        _look_up(found, table, pages, which, pages.chosen[which])
    return found


def _target_marginals(pages: Pages, ranks: Floats, temperature: float | None) -> Floats:
    found = np.ones(pages.chosen.shape)
    for which, count in _alike(pages):
        drawn_at = pages.temperatures[which[0]] if temperature is None else temperature
        table = _table(count, float(drawn_at), pages.chosen.shape[1])
        of_chosen = np.take_along_axis(ranks[which], np.maximum(pages.chosen[which], 0), axis=1)
        _look_up(found, table, pages, which, of_chosen.astype(np.int64) - 1)
    return found


def _table(count: int, temperature: float, places: int) -> Floats:
    """float64[places, count]: the probability of each rank at each place."""
    if temperature == 0:
        return np.eye(min(places, count), count)
    return marginals(-np.log(np.arange(1, count + 1)) / temperature, places)


def _alike(pages: Pages) -> Iterable[tuple[Ints, int]]:
    """Pages with as many candidates and the same temperature, by index."""
    counts = (pages.candidates != NO_ITEM).sum(axis=1)
    keys = np.stack([counts, pages.temperatures], axis=1)
    every, group = np.unique(keys, axis=0, return_inverse=True)
    for number, (count, _) in enumerate(every.tolist()):
        yield np.flatnonzero(group.reshape(-1) == number), int(count)


def _look_up(found: Floats, table: Floats, pages: Pages, which: Ints, column: Ints) -> None:
    """Pins take no place among the drawn: the place of an item is its number among the drawn ones."""
    drawn = pages.chosen[which] != NO_ITEM
    place = np.cumsum(drawn, axis=1) - 1
    found[which] = np.where(
        drawn, table[np.maximum(place, 0).clip(max=len(table) - 1), np.where(drawn, column, 0)], 1.0
    )


def _refuse_other_propensities(pages: Pages, logged: Floats) -> None:
    """What was written down of each place must be what its page's candidates and logits give."""
    drawn = pages.chosen != NO_ITEM
    off = drawn & ~np.isclose(pages.propensities, logged, rtol=_SINGLE_PRECISION, atol=0)
    if off.any():
        page, place = np.argwhere(off)[0]
        raise WrongLog(
            f"the page {pages.request_ids[page]} has the propensity {pages.propensities[page, place]:.6g} at place "
            f"{place + 1}, and its draw gives {logged[page, place]:.6g} ({off.any(axis=1).sum()} pages are like this)"
        )
