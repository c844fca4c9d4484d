"""Items like one item: what the recommenders that know similarity say, one after another."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from app.errors import NotFound
from app.serving.inventory import Inventory
from app.serving.retrieve import below
from app.serving.slate import Shown
from models.contracts import Query, Reason, SimilarItems
from models.retrieval.dense import best

SOURCES = ("item_similarity", "als_hybrid", "content_clusters")


def similar_items(inventory: Inventory, item_id: str, *, limit: int) -> list[Shown]:
    """At most `limit` items, most alike first, none twice. Raises NotFound for an item that does not exist."""
    row = inventory.catalog.row(item_id)
    if row is None:
        raise NotFound(f"item {item_id!r} does not exist")
    release, at = inventory.release, time.time()
    position = int(release.positions(np.array([row], np.int32))[0])
    hidden = release.positions(inventory.rules.blocked(user_id="", categories=(), at=at))
    query = Query(limit=limit, at=at, eligible=inventory.showable, excluded=hidden[hidden >= 0])
    found: list[Shown] = []
    for name in SOURCES if position >= 0 else ():
        recommender = release.recommenders.get(name)
        if isinstance(recommender, SimilarItems) and len(found) < limit:
            candidates = best(recommender.similar(position), replace(query, limit=limit - len(found)))
            query = replace(query, excluded=np.concatenate([query.excluded, candidates.positions]))
            reason = Reason("similar_to_liked", row)
            more = [
                Shown(int(release.row_of_position[p]), float(score), name, False, reason)
                for p, score in zip(candidates.positions, candidates.scores, strict=True)
            ]
            found += below(found, more)
    return found
