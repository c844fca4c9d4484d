"""Why an item is, or is not, in a user's list."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.errors import NotFound
from app.serving.arms import arm_of
from app.serving.context import UserContext
from app.serving.inventory import Inventory
from app.serving.pipeline import Ask, assigned_to, build_query, rank
from models.contracts import Query


@dataclass(frozen=True, slots=True)
class Explanation:
    """What each step made of one item for one user.

    position:   in the first page of `limit` items; None where it would not be shown
    removed_by: blocked, seen, capped, below_cut, not_retrieved; None where it is shown
    sources:    every recommender's score and rank (from 1, among what the request allows), None without opinion
    rules:      blocks and promotions on the item that are in force for this user
    weights:    of the learned combination, where the release has one
    """

    user_id: str
    item_id: str
    route: str
    recommender: str
    release: str | None
    shown: bool
    position: int | None
    removed_by: str | None
    sources: list[dict[str, Any]]
    rules: list[dict[str, Any]]
    weights: dict[str, float]


def explain(context: UserContext, inventory: Inventory, item_id: str, *, limit: int = 10) -> Explanation:
    """Runs the request for real, in the user's variants, and looks where the item went; the order is never drawn here,
    not even for users whose slates are (see exploration). It is no exposure. Raises NotFound for an unknown item."""
    row = inventory.catalog.row(item_id)
    if row is None:
        raise NotFound(f"item {item_id!r} does not exist")
    ask = Ask(context.user_id, limit)
    query = build_query(ask, context.view, inventory)
    ranked = rank(ask, context, inventory, query, arm=arm_of(assigned_to(ask, context, inventory)))
    order = [shown.row for shown in ranked.remaining]
    position = order.index(row) + 1 if row in order else None
    shown = position is not None and position <= limit
    rules = _rules(inventory, context.user_id, row)
    return Explanation(
        user_id=context.user_id,
        item_id=item_id,
        route=ranked.route,
        recommender=ranked.recommender,
        release=ranked.release,
        shown=shown,
        position=position if shown else None,
        removed_by=None if shown else _removed_by(context, inventory, rules, row, position),
        sources=_sources(inventory, query, row),
        rules=rules,
        weights=_weights(inventory),
    )


def _removed_by(
    context: UserContext, inventory: Inventory, rules: list[dict[str, Any]], row: int, position: int | None
) -> str:
    if any(rule["rule"] == "block" for rule in rules):
        return "blocked"
    if context.view is not None and row in context.view.seen:
        return "seen"
    if any(promotion.item_row == row and promotion.is_capped for promotion in inventory.rules.promotions):
        return "capped"
    return "below_cut" if position is not None else "not_retrieved"


def _sources(inventory: Inventory, query: Query, row: int) -> list[dict[str, Any]]:
    """The item's own exclusion is lifted, so that a seen or blocked item still gets its scores."""
    position = int(inventory.release.positions(np.array([row], np.int32))[0])
    if position < 0:
        return []
    allowed = np.ones(len(inventory.showable), np.bool_) if query.eligible is None else query.eligible.copy()
    allowed[query.excluded] = False
    allowed[position] = True
    sources = []
    for name, recommender in inventory.release.recommenders.items():
        scores = recommender.scores(replace(query, excluded=np.empty(0, np.int32)))
        score = float(scores[position])
        known = np.isfinite(score)
        rank_of = int((scores[allowed] > score).sum()) + 1 if known else None
        sources.append({"source": name, "score": score if known else None, "rank": rank_of})
    return sources


def _rules(inventory: Inventory, user_id: str, row: int) -> list[dict[str, Any]]:
    at = time.time()
    rules: list[dict[str, Any]] = []
    if row in inventory.rules.blocked(user_id=user_id, categories=(), at=at):
        rules.append({"rule": "block"})
    for promotion in inventory.rules.promotions:
        if promotion.item_row == row and promotion.applies(at, promotion.categories):
            fields = asdict(promotion)
            kept = ("position", "boost", "categories", "max_impressions", "impressions")
            rules.append({"rule": "promotion"} | {name: fields[name] for name in kept})
    return rules


def _weights(inventory: Inventory) -> dict[str, float]:
    blend = inventory.release.recommenders.get("blend")
    weights = getattr(blend, "weights", None)
    return dict(weights()) if callable(weights) else {}
