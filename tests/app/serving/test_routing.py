"""Routes at their borders, from what is known of a user alone."""

from dataclasses import replace

import pytest

from app.feedback.user_state import UserView
from app.serving.context import UserContext
from app.serving.routing import CHAINS, LAST_RESORT, decide
from models.recipes import RECIPES


def context(interactions: int, positives: int) -> UserContext:
    return UserContext("u", replace(UserView.empty(), interactions=interactions, positives=positives), {})


@pytest.mark.parametrize(
    ("interactions", "positives", "route"),
    [
        (0, 0, "new"),
        (1, 1, "few"),
        (4, 4, "few"),
        (5, 2, "few"),
        (50, 2, "few"),
        (5, 3, "established"),
        (500, 400, "established"),
    ],
)
def test_the_route_follows_interactions_and_positives(interactions: int, positives: int, route: str) -> None:
    assert decide(context(interactions, positives)).route == route


def test_a_user_whose_past_cannot_be_read_is_degraded() -> None:
    assert decide(UserContext("u", None, None)).route == "degraded"


def test_a_forced_recommender_leads_whatever_is_known() -> None:
    decision = decide(context(0, 0), forced="als_hybrid")
    assert (decision.route, decision.chain) == ("forced", ("als_hybrid", LAST_RESORT))


@pytest.mark.parametrize("route", CHAINS)
def test_every_chain_names_recipes_and_ends_where_no_item_is_unknown(route: str) -> None:
    chain = CHAINS[route]  # type: ignore[index]
    assert set(chain) <= set(RECIPES)
    assert chain[-1] == LAST_RESORT
