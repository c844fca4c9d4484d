"""Teaching the blend: from choices of the later part, with sources of the earlier, measured on what it did not see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from models.contracts import Query, Recommender, Scores, unwatched
from models.data.dataset import Dataset, Interactions, ItemTable
from models.fit_blend import CUTS, FEWEST_CHOICES, HELD_OUT, _candidates, fit_blend, unlearned
from models.live.stream import choices_of
from models.retrieval.content_profile import fit_content_profile
from models.retrieval.live_counts import fit_live_counts, refit_live_counts
from models.two_stage import Blend
from tests.recommender_contract import NOW

# On one of xdist's workers, so that what is fitted for all is fitted once.
pytestmark = pytest.mark.xdist_group("fit_blend")

N_RULED = 150
"""Items that people come to by a rule; those above are met by nobody, until a test says otherwise."""
N_ITEMS = 200
VISITS = 8


def followers(users: int = 500, seed: int = 0) -> Dataset:
    """Each user comes eight times within a day, never to the same item twice.

    Seven times of ten the rule says where to from the last item, else it is anywhere; each quarter of an hour a new
    user begins.
    """
    rng, onward = np.random.default_rng(seed), np.random.default_rng(99).permutation(N_RULED)
    visits = []
    for user in range(users):
        trail = [int(rng.integers(N_RULED))]
        while len(trail) < VISITS:
            item = int(onward[trail[-1]]) if rng.random() < 0.7 else int(rng.integers(N_RULED))
            if item in trail:
                item = int(rng.choice(np.setdiff1d(np.arange(N_RULED), trail)))
            trail.append(item)
        times = NOW + 900 * user + np.sort(rng.uniform(0, 86_400, VISITS))
        visits += [(time, user, item) for time, item in zip(times.tolist(), trail, strict=True)]
    times, users_, items = (np.array(column) for column in zip(*sorted(visits), strict=True))
    n = len(visits)
    interactions = Interactions(
        users_.astype(np.int32), items.astype(np.int32), np.ones(n, np.float32), np.ones(n, np.int8),
        np.full(n, np.nan, np.float32), times,
    )  # fmt: skip
    return Dataset(interactions, plain_items(), n_users=users)


def plain_items() -> ItemTable:
    return ItemTable(
        [()] * N_ITEMS, [()] * N_ITEMS, [""] * N_ITEMS, [None] * N_ITEMS, [None] * N_ITEMS,
        np.full(N_ITEMS, np.nan), np.empty((N_ITEMS, 0), np.float32),
    )  # fmt: skip


CONTENT: Scores = np.random.default_rng(5).normal(size=(N_ITEMS, 4)).astype(np.float32)
"""It has nothing to do with the rule."""


class Fits:
    """Fits live counts and a source, and remembers on what."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, earlier: Dataset) -> Mapping[str, Recommender]:
        self.lengths.append(len(earlier.interactions))
        return sources(earlier)


def sources(dataset: Dataset) -> dict[str, Recommender]:
    live_counts = fit_live_counts(dataset.with_interactions(dataset.interactions.take(slice(0, 0))), CONTENT,
                                  progress=unwatched)  # fmt: skip
    return {
        "live_counts": refit_live_counts(live_counts, dataset, CONTENT),
        "content_profile": fit_content_profile(CONTENT, progress=unwatched),
    }


def fit(dataset: Dataset, seed: int = 0) -> Blend:
    return fit_blend(dataset, sources(dataset), sources, seed=seed, progress=unwatched)


def part(dataset: Dataset, until: int) -> Dataset:
    return dataset.with_interactions(dataset.interactions.take(slice(0, until)))


@pytest.fixture(scope="module")
def stream() -> Dataset:
    return followers()


@pytest.fixture(scope="module")
def cut(stream: Dataset) -> int:
    return round(0.8 * len(stream.interactions))


@pytest.fixture(scope="module")
def blend(stream: Dataset, cut: int) -> Blend:
    return fit(part(stream, cut))


def ndcg_on_later_choices(recommender: Recommender, dataset: Dataset, start: int) -> float:
    """NDCG@10 among all items, of choices that have a past."""
    gains = []
    for choice in choices_of(dataset, start, len(dataset.interactions), most=600):
        if len(choice.query.history):
            shown = recommender.recommend(replace(choice.query, limit=10)).positions.tolist()
            gains.append(1 / np.log2(shown.index(choice.chosen) + 2) if choice.chosen in shown else 0.0)
    assert len(gains) > 400
    return float(np.mean(gains))


def test_what_leads_from_item_to_item_is_learned(blend: Blend, stream: Dataset, cut: int) -> None:
    """Live counts can't know where a user goes next; whoever saw the rule finds seven of ten."""
    learned = ndcg_on_later_choices(blend, stream, cut)
    counted = ndcg_on_later_choices(blend.live_counts, stream, cut)
    untaught = ndcg_on_later_choices(replace(blend, ranker=unlearned(1)), stream, cut)
    assert counted < 0.1
    assert learned > counted + 0.3
    assert learned > untaught + 0.02


def test_the_weights_say_what_was_learned(blend: Blend) -> None:
    weights = blend.weights()
    assert list(weights) == list(blend.feature_names)
    assert max(weights, key=lambda name: weights[name]) in ("co-visits", "co-visits of the last item")
    assert abs(weights["content_profile"]) < 0.2 * max(weights.values())


def test_the_figures_are_those_of_the_held_out_choices(blend: Blend) -> None:
    figures = dict(blend.chosen)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["choices"] >= FEWEST_CHOICES
    n = figures["held_out"] / HELD_OUT
    # Some choices are not learned from, for they were not among the candidates.
    assert 0.5 * n < figures["choices"] <= n - figures["held_out"] + 1
    assert 0 <= figures["live_counts_ndcg"] + 0.2 < figures["ndcg"] <= 1
    fifty, two_hundred = figures["recall"]["@50"], figures["recall"]["@200"]
    assert list(fifty) == [*blend.feature_names, "any"]
    for name, found in fifty.items():
        assert 0 <= found <= two_hundred[name] <= 1
        assert found <= fifty["any"]
    assert fifty["co-visits"] > fifty["content_profile"] + 0.3


def test_the_figures_foretell_what_later_choices_say(blend: Blend, stream: Dataset, cut: int) -> None:
    later = [choice for choice in choices_of(stream, cut, len(stream.interactions), most=600)]
    assert later
    whole = ndcg_on_later_choices(blend, stream, cut)
    # First visits are among the figures, and nobody can foretell them.
    assert blend.chosen["ndcg"] == pytest.approx(whole * (VISITS - 1) / VISITS, abs=0.08)


def elsewhere(dataset: Dataset, which: slice) -> Dataset:
    """Those visits go to items that nobody met before, none of them twice to one user."""
    items, nth = dataset.interactions.items.copy(), dict.fromkeys(range(dataset.n_users), 0)
    for index in range(*which.indices(len(items))):
        user = int(dataset.interactions.users[index])
        items[index] = N_RULED + (user * VISITS + nth[user]) % (N_ITEMS - N_RULED)
        nth[user] += 1
    return dataset.with_interactions(replace(dataset.interactions, items=items))


def test_the_held_out_part_is_not_learned_from(blend: Blend, stream: Dataset, cut: int) -> None:
    """Figures fall, the ranker stays as it was to the last digit."""
    held_out = round(HELD_OUT * (1 - CUTS[0]) * cut)
    other = fit(elsewhere(part(stream, cut), slice(cut - held_out, cut)))
    for name, array in blend.ranker.parts().items():
        np.testing.assert_array_equal(other.ranker.parts()[name], array)
    assert other.chosen["held_out"] == held_out == blend.chosen["held_out"]
    assert other.chosen["ndcg"] < blend.chosen["ndcg"] - 0.2


def test_what_comes_before_the_held_out_part_is_learned_from(blend: Blend, stream: Dataset, cut: int) -> None:
    other = fit(elsewhere(part(stream, cut), slice(cut // 2, cut // 2 + 100)))
    assert (other.ranker.wide != blend.ranker.wide).any()


def test_sources_are_fitted_on_what_came_before_and_served_as_of_the_end(stream: Dataset, cut: int) -> None:
    given, fits, seen = sources(part(stream, cut)), Fits(), list[float]()
    blend = fit_blend(part(stream, cut), given, fits, seed=0, progress=lambda _, done: seen.append(done))
    assert fits.lengths == [round(cut * share) for share in CUTS]
    assert blend.live_counts is given["live_counts"]
    assert list(blend.sources) == ["content_profile"]
    assert blend.sources["content_profile"] is given["content_profile"]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    assert len(seen) > 10


def test_the_same_seed_learns_the_same(blend: Blend, stream: Dataset, cut: int) -> None:
    again = fit(part(stream, cut))
    assert again.chosen == blend.chosen
    for name, array in blend.parts().arrays.items():
        np.testing.assert_array_equal(again.parts().arrays[name], array)


@pytest.mark.parametrize("n", [0, 1, 2, 5, FEWEST_CHOICES])
def test_too_few_choices_teach_nothing(stream: Dataset, n: int) -> None:
    blend = fit(part(stream, n))
    assert blend.chosen == {}
    for name, array in unlearned(1).parts().items():
        np.testing.assert_array_equal(blend.ranker.parts()[name], array)
    assert len(blend.recommend(Query(limit=1_000, at=NOW)).positions) == N_ITEMS


def test_repeats_and_dislikes_are_no_choices(stream: Dataset) -> None:
    disliked = replace(stream.interactions, signs=np.full(len(stream.interactions), -1, np.int8))
    assert fit(stream.with_interactions(disliked)).chosen == {}
    same = replace(stream.interactions, users=np.zeros_like(stream.interactions.users))
    assert fit(stream.with_interactions(same)).chosen == {}


def test_a_choice_of_the_only_item_teaches_nothing_and_breaks_nothing() -> None:
    n = 2_000
    interactions = Interactions(
        np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.ones(n, np.float32), np.ones(n, np.int8),
        np.full(n, np.nan, np.float32), NOW + np.arange(n, dtype=np.float64),
    )  # fmt: skip
    lonely = Dataset(interactions, ItemTable([()], [()], [""], [None], [None], np.full(1, np.nan),
                                             np.empty((1, 0), np.float32)), n)  # fmt: skip
    only = {"live_counts": refit_live_counts(sources(followers(1))["live_counts"], lonely, CONTENT[:1])}  # type: ignore[arg-type]
    blend = fit_blend(lonely, only, lambda _: only, seed=0, progress=unwatched)
    assert blend.chosen["ndcg"] == 1.0
    assert blend.recommend(Query(limit=5, at=NOW)).positions.tolist() == [0]


def test_candidates_are_the_best_by_any_feature_that_are_allowed() -> None:
    shown = np.full((2, 500), -np.inf, np.float32)
    shown[0, :300] = np.arange(300)
    shown[1, :300] = -np.arange(300)
    found = _candidates(shown)
    assert {0, 1, 298, 299} <= set(found.tolist())
    assert 100 < len(found) < 200
    assert found.max() < 300
    assert 150 not in found
