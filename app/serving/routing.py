"""Which recommender is asked, and which stand behind it. Pure: what is known of the user decides."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from app.experiments import parameters
from app.serving.arms import NO_ARM, Arm
from app.serving.context import UserContext

Route = Literal["new", "few", "established", "listening", "degraded", "forced"]

FEW_INTERACTIONS = 5
FEW_POSITIVE = 3

LAST_RESORT = "popularity"
"""Speaks of every item, so a chain that ends in it leaves a page short only where the catalogue is."""

CHAINS: dict[Route, tuple[str, ...]] = {
    "new": ("live_counts", LAST_RESORT),
    "few": ("blend", "content_clusters", "live_counts", LAST_RESORT),
    "established": ("blend", "als_hybrid", "live_counts", LAST_RESORT),
    "degraded": ("live_counts", LAST_RESORT),
}


def defaults() -> dict[str, Any]:
    """What is served now where no experiment has a say: a holdout keeps it for its control group."""
    return {"chains": {route: list(chain) for route, chain in CHAINS.items()}, "parameters": parameters.defaults()}


class Decision(NamedTuple):
    """The route and its chain: the first recommender that has an answer leads, the others fill up."""

    route: Route
    chain: tuple[str, ...]


def decide(context: UserContext, *, forced: str | None = None, arm: Arm = NO_ARM) -> Decision:
    """The route of this request (API.md, `route`), and its chain, at whose head an experiment may put another.

    forced: name of a recommender that the caller insists on; it is known to exist.
    """
    if forced is not None:
        return Decision("forced", (forced, LAST_RESORT) if forced != LAST_RESORT else (forced,))
    route = route_of(context)
    chain = CHAINS[route] if arm.chains is None else tuple(arm.chains.get(route, CHAINS[route]))
    if arm.recommender is not None:
        chain = (arm.recommender, *(name for name in chain if name != arm.recommender))
    return Decision(route, chain)


def route_of(context: UserContext) -> Route:
    """By what is known of the user alone."""
    if context.view is None:
        return "degraded"
    if context.view.interactions == 0:
        return "new"
    if context.view.interactions < FEW_INTERACTIONS or context.view.positives < FEW_POSITIVE:
        return "few"
    return "established"
