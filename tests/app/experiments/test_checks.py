"""What is refused before anybody is served, and would give results that can't be right."""

from __future__ import annotations

from typing import Any

import pytest

from app.experiments import checks
from app.experiments.definitions import Experiment, Variant
from app.serving import next_page

HALVES = (Variant("control", 0.5), Variant("treatment", 0.5))


def experiment(key: str, **more: Any) -> Experiment:
    return Experiment(key, run=1, seed=key, namespace=None, coverage=1.0, variants=HALVES, **more)


def test_a_second_holdout_may_not_run_beside_the_first() -> None:
    second, first = experiment("half", holdout=True), experiment("quarter", holdout=True, surface="side")
    (refused,) = checks.conflicts(second, [first, experiment("ranker")])
    assert refused.loc == ("body", "holdout")
    assert "'quarter'" in refused.msg
    assert checks.conflicts(second, [experiment("ranker")]) == []
    assert checks.conflicts(experiment("ranker"), [first]) == []


@pytest.mark.parametrize("field", ["route", "surface"])
def test_what_plays_next_is_in_no_experiment_so_none_may_wait_for_it(field: str) -> None:
    (flaw,) = checks.flaws(experiment("next", **{field: checks.OF_PLAYERS[field]}), recommenders=())
    assert flaw.loc == ("body", field)
    assert "POST /recommend/next" in flaw.msg


def test_a_player_calls_its_surface_so() -> None:
    assert checks.OF_PLAYERS["surface"] == next_page.SURFACE
