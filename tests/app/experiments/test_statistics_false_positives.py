"""2,000 experiments in which nothing happens, and 2,000 in which something does, through the real analysis.

The users return and their totals grow daily (benchmarks/experiments_aa.py, which prints all of it as a table).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.experiments_aa import (
    ALPHA,
    KINDS,
    POWER,
    SETTINGS,
    Setting,
    bounds,
    effects_to_find,
    experiments,
    is_found_at_the_end,
    peek,
)

NUMBER, SEED = 2_000, 1
PEEKED = tuple(Setting(kind, winsor=0.99 if kind == "listening time" else None) for kind in KINDS)
WITH_EFFECT = tuple(replace(setting, cuped=setting.kind != "has liked") for setting in PEEKED)

# One run of all serves all tests: on one worker, and with the time that a slow machine takes.
pytestmark = [pytest.mark.xdist_group("experiments_aa"), pytest.mark.timeout(3_600)]


@pytest.fixture(scope="module")
def found() -> dict[str, Counter[Setting]]:
    """How often something was found: at the end, with a planted effect, and when peeking every evening."""
    counts: dict[str, Counter[Setting]] = {
        name: Counter() for name in ("end", "planted", "one look", "every look", "looks")
    }
    effects = effects_to_find(WITH_EFFECT, SEED)
    for _, course in experiments(NUMBER, SEED):
        counts["end"].update(s for s in SETTINGS if s not in PEEKED and is_found_at_the_end(course, s))
        counts["planted"].update(s for s, effect in effects.items() if is_found_at_the_end(course, s, effect))
        for setting in PEEKED:
            peeked = peek(course, setting)
            counts["end"][setting] += peeked.at_the_end
            counts["one look"][setting] += peeked.one_look
            counts["every look"][setting] += peeked.every_look
            counts["looks"][setting] += peeked.looks_judged
    return counts


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_one_planned_look_finds_nothing_95_times_of_a_hundred(setting: Setting, found) -> None:
    low, high = bounds(NUMBER, ALPHA)
    assert low <= found["end"][setting] <= high


@pytest.mark.parametrize("setting", PEEKED, ids=lambda setting: setting.label)
def test_peeking_every_evening_breaks_what_is_made_for_one_look_alone(setting: Setting, found) -> None:
    _, high = bounds(NUMBER, ALPHA)
    assert found["one look"][setting] > 1.5 * high
    assert found["every look"][setting] <= high
    assert found["looks"][setting] > 4 * NUMBER  # it did speak, on five evenings of eight


@pytest.mark.parametrize("setting", WITH_EFFECT, ids=lambda setting: setting.label)
def test_an_effect_is_found_as_often_as_the_power_calculation_says(setting: Setting, found) -> None:
    low, high = bounds(NUMBER, POWER)
    assert low <= found["planted"][setting] <= high
