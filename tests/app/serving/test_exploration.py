"""Draws are Plackett–Luce and say their own probabilities; whom they are for is a hash that only ever adds users."""

from itertools import pairwise, permutations
from math import prod

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare, kstest

from app.serving.exploration import (
    Exploration,
    Sampler,
    generator_of,
    logits_of,
    plackett_luce,
    propensities_of,
    uniform,
)
from app.serving.slate import Shown
from models.contracts import Reason

DRAWS = 20_000
FOUR = logits_of(4, 0.7)
SLATE = [Shown(row, 10.0 - row, "blend", False, Reason("taste")) for row in range(12)]
USERS = [f"user-{n}" for n in range(20_000)]


def fnv1a(text: str) -> int:
    """FNV-1a in 32 bits, which experiments hash with."""
    hashed = 0x811C9DC5
    for byte in text.encode():
        hashed = (hashed ^ byte) * 0x01000193 % 2**32
    return hashed


@pytest.fixture(scope="module")
def orders() -> np.ndarray:
    """int64[DRAWS, 4]: drawn rankings of four items."""
    generator = np.random.default_rng(11)
    return np.array([plackett_luce(FOUR, generator).order for _ in range(DRAWS)])


def probability(order: tuple[int, ...]) -> float:
    return prod(propensities_of(FOUR[list(order)]))


class TestDraw:
    def test_every_ranking_comes_as_often_as_its_propensities_say(self, orders: np.ndarray) -> None:
        every = list(permutations(range(4)))
        seen = [(orders == order).all(axis=1).sum() for order in every]
        assert chisquare(seen, [DRAWS * probability(order) for order in every]).pvalue > 0.001

    def test_the_first_place_follows_the_weights(self, orders: np.ndarray) -> None:
        weights = np.arange(1, 5) ** (-1 / 0.7)
        assert chisquare(np.bincount(orders[:, 0]), DRAWS * weights / weights.sum()).pvalue > 0.001

    def test_the_probabilities_of_all_rankings_add_up_to_one(self) -> None:
        assert sum(probability(order) for order in permutations(range(4))) == pytest.approx(1, abs=1e-12)

    def test_importance_weights_are_one_on_average(self, orders: np.ndarray) -> None:
        """Of another ranking policy, the one that would have turned the list around."""
        other = FOUR[::-1]
        weights = [prod(propensities_of(other[order])) / prod(propensities_of(FOUR[order])) for order in orders]
        assert abs(np.mean(weights) - 1) < 4 * np.std(weights) / np.sqrt(DRAWS)

    def test_what_another_order_would_have_brought_can_be_estimated(self, orders: np.ndarray) -> None:
        """Inverse propensity weighting of the first place: clicks of 0.1 … 0.5; each shown as often."""
        click = np.array([0.5, 0.1, 0.2, 0.2])
        first = orders[:, 0]
        clicked = np.random.default_rng(12).random(DRAWS) < click[first]
        gains = clicked * 0.25 / np.exp(FOUR - np.logaddexp.reduce(FOUR))[first]
        assert abs(gains.mean() - click.mean()) < 4 * gains.std() / np.sqrt(DRAWS)
        assert abs(clicked.mean() - click.mean()) > 0.05

    def test_propensities_are_exact_where_logits_are_far_apart(self) -> None:
        assert propensities_of(np.array([0.0, -800.0, -801.0])) == pytest.approx([1, 1 / (1 + np.exp(-1)), 1])
        assert propensities_of(np.array([-800.0, 0.0]))[0] == pytest.approx(np.exp(-800.0), abs=0)

    def test_a_low_temperature_keeps_the_order_and_a_high_one_forgets_it(self) -> None:
        def kept(temperature: float) -> int:
            logits = logits_of(50, temperature)
            return sum(plackett_luce(logits, np.random.default_rng(n)).order[0] == 0 for n in range(300))

        assert kept(0.1) > 290
        assert 150 < kept(0.5) < 220
        assert kept(100.0) < 20


class TestSampler:
    def test_a_draw_loses_nothing_and_says_its_propensities(self) -> None:
        draw = Sampler(0.5, "01A").draw(SLATE)
        rows = [shown.row for shown in draw.ranking]
        assert sorted(rows) == list(range(12))
        assert [shown.propensity for shown in draw.ranking] == propensities_of(np.array(draw.logits)[rows]).tolist()
        assert draw.candidates == tuple(SLATE)

    def test_scores_still_fall_in_a_drawn_slate(self) -> None:
        scores = [shown.score for shown in Sampler(5.0, "01A").draw(SLATE).ranking]
        assert all(above >= under for above, under in pairwise(scores))

    def test_a_request_id_draws_the_same_again_and_another_one_something_else(self) -> None:
        first, again, other = (Sampler(0.5, seed).draw(SLATE).ranking for seed in ("01A", "01A", "01B"))
        assert first == again
        assert [shown.row for shown in first] != [shown.row for shown in other]

    def test_neighbouring_request_ids_draw_independently(self) -> None:
        draws = [generator_of(f"01M80RBGW0PBSERYZ8P3B{n:05d}").random() for n in range(5_000)]
        assert kstest(draws, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.05

    def test_the_scale_of_the_scores_changes_nothing(self) -> None:
        far = [Shown(s.row, -1e9 if s.row > 5 else s.score, s.source, False, s.reason) for s in SLATE]
        assert Sampler(0.5, "01A").draw(far).ranking == Sampler(0.5, "01A").draw(SLATE).ranking

    @pytest.mark.parametrize("n", [0, 1])
    def test_a_slate_without_a_choice_is_as_it_was(self, n: int) -> None:
        draw = Sampler(0.5, "01A").draw(SLATE[:n])
        assert [(shown.row, shown.propensity) for shown in draw.ranking] == [(0, 1.0)][:n]


class TestShare:
    def test_users_are_spread_evenly(self) -> None:
        assert kstest([uniform(user) for user in USERS], "uniform").pvalue > 0.001

    def test_growing_only_adds_users(self) -> None:
        shares = [{user for user in USERS if Exploration(s, 0.5).sampler(user, "01A")} for s in (0.01, 0.05, 0.5)]
        assert shares[0] < shares[1] < shares[2]
        assert 140 < len(shares[0]) < 260

    def test_nobody_and_everybody(self) -> None:
        assert not any(Exploration(0.0, 0.5).sampler(user, "01A") for user in USERS)
        assert all(Exploration(1.0, 0.5).sampler(user, "01A") for user in USERS)

    def test_it_is_independent_of_the_buckets_of_experiments(self) -> None:
        """GrowthBook's, hash version 2: FNV-1a twice over seed and id, in ten thousandths."""
        explored = [uniform(user) < 0.1 for user in USERS]
        variant = [fnv1a(f"{fnv1a('feed-ranker' + user)}") % 10_000 // 2_500 for user in USERS]
        table = np.zeros((2, 4))
        np.add.at(table, (np.array(explored, int), np.array(variant)), 1)
        assert table.min() > 400
        assert chi2_contingency(table).pvalue > 0.001
