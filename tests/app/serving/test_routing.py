"""Routes at their borders, from what is known of a user alone."""

from dataclasses import replace

import pytest

from app.feedback.user_state import UserView
from app.serving.arms import Arm
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


def test_a_variant_leads_and_the_chain_of_the_route_stands_behind_it() -> None:
    assert decide(context(0, 0), arm=Arm(recommender="als_hybrid")).chain == ("als_hybrid", *CHAINS["new"])
    blended = decide(context(9, 9), arm=Arm(recommender="als_hybrid"))
    assert blended.chain == ("als_hybrid", "blend", "live_counts", LAST_RESORT)
    assert blended.route == "established"


def test_who_is_held_out_gets_the_chain_of_then_where_it_had_one() -> None:
    then = Arm(chains={"established": ["item_similarity", LAST_RESORT]})
    assert decide(context(9, 9), arm=then).chain == ("item_similarity", LAST_RESORT)
    assert decide(context(0, 0), arm=then).chain == CHAINS["new"]
