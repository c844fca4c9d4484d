"""Users are bucketed as GrowthBook buckets them, evenly, independently between seeds, and for good."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from growthbook import GrowthBook, core
from growthbook.common_types import Experiment
from scipy import stats

from app.experiments.assignment import Allocation, Namespace, is_inside, variants_of

DEFINITIONS = 20
AGREED_IDS, WHOLE_SDK_IDS = 100_000, 2_000
LEVEL = 1e-6
"""Of the statistical tests. Nothing in them is random, so they pass or fail once and for all."""


def some_definitions(chance: random.Random) -> list[Allocation]:
    """Of two to five variants; some cover only a part of all users, some are in a namespace, some have an odd seed."""
    found = []
    for number in range(DEFINITIONS):
        shares = np.array([chance.randint(1, 9) for _ in range(chance.randint(2, 5))])
        start = chance.choice([0.0, 0.1, 0.25])
        found.append(
            Allocation(
                seed=chance.choice([f"experiment-{number}", f"{number}", f"Straße {number}"]),
                weights=tuple((shares / shares.sum()).tolist()),
                coverage=chance.choice([0.0, 0.07, 0.5, 0.9999, 1.0]),
                namespace=chance.choice([None, Namespace("feed", start, start + 0.5)]),
                forced={"user 7": 1} if number % 3 == 0 else {},
            )
        )
    return found


def some_ids(chance: random.Random, n: int) -> list[str]:
    """Numbers, UUIDs and arbitrary ASCII."""
    ascii_text = [chr(code) for code in range(33, 127)]
    kinds: list[Callable[[int], str]] = [
        lambda number: f"user {number}",
        str,
        lambda _: "-".join(f"{chance.getrandbits(bits):0{bits // 4}x}" for bits in (32, 16, 16, 16, 48)),
        lambda _: "".join(chance.choices(ascii_text, k=chance.randint(1, 40))),
    ]
    return [kinds[number % len(kinds)](number) for number in range(n)]


def as_growthbook(number: int, allocation: Allocation) -> Experiment[int]:
    return Experiment(
        key=f"key {number}",
        variations=list(range(len(allocation.weights))),
        seed=allocation.seed,
        hashVersion=2,
        weights=list(allocation.weights),
        coverage=allocation.coverage,
        namespace=allocation.namespace,
    )


def judged(number: int, allocation: Allocation, user_id: str) -> int | None:
    """What the whole SDK says."""
    forced = {f"key {number}": allocation.forced[user_id]} if user_id in allocation.forced else {}
    result = GrowthBook(attributes={"id": user_id}, forced_variations=forced).run(as_growthbook(number, allocation))
    return result.variationId if result.inExperiment else None


def judged_by_steps(allocation: Allocation, user_ids: Sequence[str]) -> list[int | None]:
    """What the steps say that the SDK takes for a user who is not forced, without what it does around them."""
    ranges = core.getBucketRanges(len(allocation.weights), allocation.coverage, list(allocation.weights))
    found: list[int | None] = []
    for user_id in user_ids:
        if allocation.namespace is not None and not core.inNamespace(user_id, allocation.namespace):
            found.append(None)
            continue
        bucket = core.gbhash(allocation.seed, user_id, 2)
        assert bucket is not None
        variation = core.chooseVariation(bucket, ranges)
        found.append(None if variation < 0 else variation)
    return found


DEFINED = some_definitions(random.Random(3))


@pytest.fixture(scope="module")
def user_ids() -> list[str]:
    return some_ids(random.Random(4), AGREED_IDS)


@pytest.mark.parametrize("number", range(DEFINITIONS))
def test_growthbook_puts_everybody_in_the_same_variant(number: int, user_ids: list[str]) -> None:
    allocation = replace(DEFINED[number], forced={})
    assert [allocation.variant_of(user_id) for user_id in user_ids] == judged_by_steps(allocation, user_ids)


@pytest.mark.parametrize("number", range(DEFINITIONS))
def test_so_does_the_whole_of_its_sdk(number: int, user_ids: list[str]) -> None:
    allocation = DEFINED[number]
    for user_id in ["user 7", *user_ids[:WHOLE_SDK_IDS], "Zoë", "ユーザー", "👩‍🚀", "lone \ud800"]:
        assert allocation.variant_of(user_id) == judged(number, allocation, user_id), user_id


@pytest.mark.parametrize(("weights", "coverage"), [((0.1,) * 10, 1.0), ((0.1, 0.2, 0.3, 0.4), 0.5)])
def test_buckets_at_the_edges_are_growthbooks_to_the_last_bit(weights: tuple[float, ...], coverage: float) -> None:
    """Where an edge is a sum that rounds: `sum` rounds it in another way from Python 3.12 on."""
    ranges = Allocation("seed", weights, coverage)._ranges
    assert list(ranges) == core.getBucketRanges(len(weights), coverage, list(weights))


def test_variants_get_their_shares(user_ids: list[str]) -> None:
    for allocation in DEFINED:
        whole = replace(allocation, coverage=1.0, namespace=None, forced={})
        counts = Counter(whole.variant_of(user_id) for user_id in user_ids[:20_000])
        expected = [weight * 20_000 for weight in whole.weights]
        observed = [counts[variant] for variant in range(len(expected))]
        assert sum(observed) == 20_000, "rounding leaves nobody out"
        assert stats.chisquare(observed, expected).pvalue > LEVEL


def test_experiments_with_other_seeds_are_independent(user_ids: list[str]) -> None:
    """Also where the seeds look alike, in which version 1 of the hash fails."""
    variants = [
        [Allocation(seed, (0.5, 0.5)).variant_of(user_id) for user_id in user_ids[:20_000]]
        for seed in ("feed", "feed-2", "feed-3", "1", "2", "a", "b")
    ]
    for one, other in combinations(variants, 2):
        table = np.zeros((2, 2))
        np.add.at(table, (np.array(one, int), np.array(other, int)), 1)
        assert stats.chi2_contingency(table).pvalue > LEVEL


def test_growing_coverage_adds_users_and_moves_none(user_ids: list[str]) -> None:
    steps = [Allocation("ramp", (0.2, 0.3, 0.5), coverage) for coverage in (0.0, 0.01, 0.1, 0.5, 1.0)]
    assigned = [[step.variant_of(user_id) for user_id in user_ids[:20_000]] for step in steps]
    assert set(assigned[0]) == {None}
    for before, after in pairwise(assigned):
        assert all(was is None or was == now for was, now in zip(before, after, strict=True))
        assert sum(now is not None for now in after) > sum(was is not None for was in before)


def test_ranges_of_one_namespace_share_nobody(user_ids: list[str]) -> None:
    ranges = [Namespace("feed", 0.0, 0.3), Namespace("feed", 0.3, 0.35), Namespace("feed", 0.35, 1.0)]
    for user_id in user_ids[:20_000]:
        assert sum(is_inside(each, user_id) for each in ranges) == 1


def test_many_at_once_are_what_they_are_one_by_one() -> None:
    """In lanes of one long integer, over which no hash may spill; ids beyond ASCII included."""
    chance = random.Random(5)
    definitions = some_definitions(chance)
    ids = [*some_ids(chance, 500), "", "żółć", "🎬🎬", "\ud800", "user 7"]
    for n in (0, 1, 2, 3, 7, len(definitions)):
        for user_id in ids:
            one_by_one = [allocation.variant_of(user_id) for allocation in definitions[:n]]
            assert variants_of(definitions[:n], user_id) == one_by_one
