"""Each estimator is what its formula says, read aloud in plain loops; and is the plain mean where nothing changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.off_policy_logs import PIN_KIND, by_rank, drawn_logs, truth_of
from models.evaluation.off_policy import single, slates
from models.evaluation.off_policy.intervals import interval_of
from models.evaluation.off_policy.log import SingleLog, SlateLog, WrongLog
from models.evaluation.off_policy.methods import Weighed
from models.evaluation.off_policy.report import SINGLE, SLATES, report_on
from models.evaluation.off_policy.reward_models import Predictions, crossed, folds_of

LOGGING, TARGET = by_rank("0.7", 0.7), by_rank("swapped", 0.5, [1, 0, 3, 2, 5, 4])
LOG = drawn_logs(3, users=80, logging=LOGGING, target=TARGET)["cascade"]
FIRST = LOG.place(0)
UNCHANGED = drawn_logs(3, users=80, logging=LOGGING, target=LOGGING)["cascade"]
N, K = LOG.rewards.shape


def answer(weighed: Weighed) -> float:
    return float(weighed.values.mean())


class TestSingle:
    def test_ips(self) -> None:
        total = 0.0
        for i in range(N):
            total += FIRST.target[i] / FIRST.logged[i] * FIRST.rewards[i]
        assert answer(single.ips(FIRST)) == pytest.approx(total / N, rel=1e-12)

    def test_snips(self) -> None:
        above = sum(FIRST.target[i] / FIRST.logged[i] * FIRST.rewards[i] for i in range(N))
        under = sum(FIRST.target[i] / FIRST.logged[i] for i in range(N))
        assert answer(single.snips(FIRST)) == pytest.approx(above / under, rel=1e-12)

    def test_dm_is_what_each_kind_earned_times_how_often_the_target_shows_it(self) -> None:
        total = 0.0
        for kind in range(FIRST.target_kinds.shape[1]):
            earned = FIRST.rewards[FIRST.kinds == kind]
            total += sum(FIRST.target_kinds[:, kind]) * (sum(earned) / len(earned) if len(earned) else 0.0)
        assert answer(single.dm(FIRST)) == pytest.approx(total / N, rel=1e-9)

    def test_dr_with_a_model_of_the_callers(self) -> None:
        model = np.linspace(0.1, 0.4, FIRST.target_kinds.shape[1])
        predictions = Predictions(model[FIRST.kinds], FIRST.target_kinds @ model)
        total = 0.0
        for i in range(N):
            total += sum(FIRST.target_kinds[i] * model)
            total += FIRST.target[i] / FIRST.logged[i] * (FIRST.rewards[i] - model[FIRST.kinds[i]])
        assert answer(single.dr(FIRST, predictions)) == pytest.approx(total / N, rel=1e-12)
        assert answer(single.dm(FIRST, predictions)) == pytest.approx((FIRST.target_kinds @ model).mean(), rel=1e-12)

    def test_a_decision_has_no_part_in_the_model_that_corrects_it(self) -> None:
        changed = np.where(FIRST.users == FIRST.users[0], 1 - FIRST.rewards, FIRST.rewards)
        before, after = (
            crossed(FIRST.kinds, rewards, FIRST.target_kinds, FIRST.users) for rewards in (FIRST.rewards, changed)
        )
        same_fold = folds_of(FIRST.users) == folds_of(FIRST.users)[0]
        assert (before.expected[same_fold] == after.expected[same_fold]).all()
        assert (before.expected[~same_fold] != after.expected[~same_fold]).any()


class TestSlates:
    def test_sips(self) -> None:
        total = 0.0
        for i in range(N):
            weight = 1.0
            for k in range(K):
                weight *= LOG.target[i, k] / LOG.logged[i, k]
            total += weight * sum(LOG.rewards[i])
        assert answer(slates.sips(LOG)) == pytest.approx(total / N, rel=1e-12)

    def test_iips(self) -> None:
        total = 0.0
        for i in range(N):
            for k in range(K):
                total += LOG.target_marginals[i, k] / LOG.logged_marginals[i, k] * LOG.rewards[i, k]
        assert answer(slates.iips(LOG)) == pytest.approx(total / N, rel=1e-12)

    def test_rips(self) -> None:
        total = 0.0
        for i in range(N):
            weight = 1.0
            for k in range(K):
                weight *= LOG.target[i, k] / LOG.logged[i, k]
                total += weight * LOG.rewards[i, k]
        assert answer(slates.rips(LOG)) == pytest.approx(total / N, rel=1e-12)

    def test_rips_self_normalised(self) -> None:
        value = 0.0
        for k in range(K):
            weights = [np.prod(LOG.target[i, : k + 1] / LOG.logged[i, : k + 1]) for i in range(N)]
            value += sum(w * r for w, r in zip(weights, LOG.rewards[:, k], strict=True)) / sum(weights)
        assert answer(slates.rips_self_normalised(LOG)) == pytest.approx(value, rel=1e-12)

    def test_sips_and_iips_self_normalised(self) -> None:
        whole = np.array([np.prod(LOG.target[i] / LOG.logged[i]) for i in range(N)])
        assert answer(slates.sips_self_normalised(LOG)) == pytest.approx(
            sum(whole * LOG.rewards.sum(axis=1)) / sum(whole), rel=1e-12
        )
        own = LOG.target_marginals / LOG.logged_marginals
        assert answer(slates.iips_self_normalised(LOG)) == pytest.approx(
            sum(sum(own[:, k] * LOG.rewards[:, k]) / sum(own[:, k]) for k in range(K)), rel=1e-12
        )

    def test_cascade_dr(self) -> None:
        """The formula of Kiyohara and others (2022), with the models of the other fold fitted in plain loops."""
        folds, n_kinds, total = folds_of(LOG.users), LOG.target_kinds.shape[2], 0.0
        for fold in (0, 1):
            others = [i for i in range(N) if folds[i] != fold]
            below = dict.fromkeys(others, 0.0)
            models = {}
            for k in range(K - 1, -1, -1):
                to_go = {i: LOG.rewards[i, k] + below[i] for i in others}
                mean = sum(to_go.values()) / len(others)
                model = []
                for kind in range(n_kinds):
                    of_kind = [to_go[i] for i in others if LOG.kinds[i, k] == kind]
                    model.append((sum(of_kind) + 5 * mean) / (len(of_kind) + 5))
                models[k] = model
                below = {i: sum(p * q for p, q in zip(LOG.target_kinds[i, k], model, strict=True)) for i in others}
            for i in (i for i in range(N) if folds[i] == fold):
                above = 1.0
                for k in range(K):
                    weight = above * LOG.target[i, k] / LOG.logged[i, k]
                    total += weight * (LOG.rewards[i, k] - models[k][LOG.kinds[i, k]])
                    total += above * sum(p * q for p, q in zip(LOG.target_kinds[i, k], models[k], strict=True))
                    above = weight
        assert answer(slates.cascade_dr(LOG)) == pytest.approx(total / N, rel=1e-10)

    def test_a_promotion_is_shown_for_certain_and_weighs_nothing(self) -> None:
        pins = LOG.kinds == PIN_KIND
        assert pins.any()
        assert (LOG.logged[pins] == 1).all()
        assert (LOG.marginal_weights[pins] == 1).all()
        assert (LOG.weights[:, 1][pins[:, 1]] == LOG.weights[:, 0][pins[:, 1]]).all()

    def test_with_one_place_all_of_them_are_the_single_ones(self) -> None:
        one = SlateLog(
            *(array[:, :1] for array in (LOG.rewards, LOG.logged, LOG.target, LOG.logged, LOG.target)),
            LOG.users,
            *(array[:, :1] for array in (LOG.kinds, LOG.logged_kinds, LOG.target_kinds)),
        )
        for make in (slates.sips, slates.iips, slates.rips):
            assert make(one).values == pytest.approx(single.ips(FIRST).values, rel=1e-12)
        for make in (slates.sips_self_normalised, slates.iips_self_normalised, slates.rips_self_normalised):
            assert make(one).values == pytest.approx(single.snips(FIRST).values, rel=1e-12)
        assert slates.cascade_dr(one).values == pytest.approx(single.dr(FIRST).values, rel=1e-12)


class TestTheSamePolicy:
    """The target is what served: then the answer is what was earned."""

    @pytest.mark.parametrize("make", [slates.sips, slates.iips, slates.rips])
    def test_lists_give_the_empirical_mean_exactly(self, make: object) -> None:
        assert answer(make(UNCHANGED)) == UNCHANGED.rewards.sum(axis=1).mean()  # type: ignore[operator]

    def test_single_gives_the_empirical_mean_exactly(self) -> None:
        first = UNCHANGED.place(0)
        assert answer(single.ips(first)) == first.rewards.mean()

    def test_divided_by_the_sum_of_weights_only_rounding_differs(self) -> None:
        first, whole = UNCHANGED.place(0), UNCHANGED.rewards.sum(axis=1).mean()
        assert answer(single.snips(first)) == pytest.approx(first.rewards.mean(), rel=1e-14)
        for make in (slates.sips_self_normalised, slates.iips_self_normalised, slates.rips_self_normalised):
            assert answer(make(UNCHANGED)) == pytest.approx(whole, rel=1e-14)

    def test_the_difference_is_nothing_and_no_check_complains(self) -> None:
        report = report_on(UNCHANGED)
        for estimate in (*report.of_first, *report.of_lists):
            if estimate.method.name.startswith(("IPS", "SIPS", "IIPS", "RIPS", "SNIPS")):
                assert estimate.difference.mean == pytest.approx(0, abs=1e-14)
                assert estimate.effective_size == pytest.approx(N)
        assert report.wrong_log is None

    def test_those_with_a_model_also_look_at_what_might_have_been_shown(self) -> None:
        """They are not the plain mean, and hold it in their interval."""
        earned = UNCHANGED.rewards.sum(axis=1).mean()
        interval = interval_of(slates.cascade_dr(UNCHANGED).values, UNCHANGED.users)
        assert interval.low < earned < interval.high


class TestEveryone:
    @pytest.mark.parametrize("make", [*SINGLE, *SLATES], ids=lambda make: make.__name__)
    def test_each_says_what_it_assumes_and_where_it_is_from(self, make: object) -> None:
        log = LOG if make in SLATES else FIRST
        method = make(log).method  # type: ignore[operator]
        assert method.assumption
        assert any(char.isdigit() for char in method.source)

    def test_a_large_log_comes_close_to_the_truth(self) -> None:
        """Not an interval's promise: with 20,000 users the error left is below a fiftieth."""
        logs = drawn_logs(1, users=20_000, logging=LOGGING, target=TARGET)
        for behaviour, makes in (
            ("independent", SLATES),
            ("cascade", (slates.sips, slates.rips, slates.rips_self_normalised, slates.cascade_dr)),
            ("whole", (slates.sips, slates.sips_self_normalised)),
        ):
            truth, _ = truth_of(TARGET, behaviour)  # type: ignore[arg-type]
            for make in makes:
                assert answer(make(logs[behaviour])) == pytest.approx(truth, rel=0.02), (behaviour, make)  # type: ignore[index]


class TestLog:
    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"logged": np.where(FIRST.logged == FIRST.logged[0], 0.0, FIRST.logged)}, "no chance to be shown"),
            ({"target": FIRST.target * 40}, "probabilities from"),
            ({"rewards": np.where(FIRST.users == 0, np.nan, FIRST.rewards)}, "not finite"),
            ({"users": FIRST.users[1:]}, "does not go with"),
            ({"target_kinds": FIRST.target_kinds / 2}, "add up to"),
        ],
    )
    def test_what_cannot_be_a_log_is_refused(self, changed: dict[str, np.ndarray], said: str) -> None:
        with pytest.raises(WrongLog, match=said):
            replace(FIRST, **changed)

    def test_places_are_logs_of_their_own(self) -> None:
        third = LOG.place(2)
        assert isinstance(third, SingleLog)
        assert (third.weights == LOG.target[:, 2] / LOG.logged[:, 2]).all()
