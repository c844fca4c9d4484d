"""Done when 3 of the experiments' issue, on real logs: what obp says, and what the other policy really earned.

Needs the data beside the project; obp's own estimators only where obp can be imported. It is of Python 3.8's time and
requires torch; its estimators run without either:

    pip install --no-deps --ignore-requires-python --target FOLDER obp==0.4.1 pandas python-dateutil pytz six
    PYTHONPATH=FOLDER pytest tests/models/evaluation/off_policy/test_open_bandit.py
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.off_policy_logs import by_rank, drawn_logs
from models.evaluation.off_policy import single, slates
from models.evaluation.off_policy.checks import ALARM, mean_weight, shown_as_logged
from models.evaluation.off_policy.intervals import difference_of, interval_of
from models.evaluation.off_policy.log import SingleLog
from models.evaluation.off_policy.methods import Weighed
from models.evaluation.off_policy.reward_models import Predictions
from tests.models.evaluation.off_policy.open_bandit import FOLDER, ITEMS, PLACES, Decisions, read

WITHIN = 1e-6


@pytest.fixture(scope="module")
def logs() -> dict[str, Decisions]:
    if not FOLDER.is_dir():
        pytest.skip("the Open Bandit data is not beside the project (../shared/data/bandit)")
    return {policy: read(policy) for policy in ("random", "bts")}


def asked(decisions: Decisions, policy: np.ndarray, logging: np.ndarray | None = None) -> SingleLog:
    """What another policy, float64[places, items], would have done; a kind is an item at a place.

    logging: all probabilities of the policy that served, where they are known
    """
    n, every = len(decisions.item), np.arange(len(decisions.item))

    def by_kind(probabilities: np.ndarray) -> np.ndarray:
        kinds = np.zeros((n, PLACES, ITEMS))
        kinds[every, decisions.place] = probabilities[decisions.place]
        return kinds.reshape(n, -1)

    return SingleLog(
        rewards=decisions.click,
        logged=decisions.propensity,
        target=policy[decisions.place, decisions.item],
        users=every,
        kinds=decisions.place * ITEMS + decisions.item,
        logged_kinds=by_kind(policy if logging is None else logging),
        target_kinds=by_kind(policy),
    )


UNIFORM = np.full((PLACES, ITEMS), 1 / ITEMS)
QUESTIONS = ("bts, asked of the random log", "random, asked of the bts log")


def question(logs: dict[str, Decisions], name: str) -> tuple[SingleLog, Decisions, np.ndarray]:
    """The log, its decisions and the target policy."""
    decisions, policy = (logs["random"], logs["bts"].shares()) if name == QUESTIONS[0] else (logs["bts"], UNIFORM)
    return asked(decisions, policy), decisions, policy


def model_of(decisions: Decisions) -> np.ndarray:
    """float64[places, items]: a reward model of the caller's, for DM and DR to be given alike."""
    clicks, shown = np.zeros((2, PLACES, ITEMS))
    np.add.at(clicks, (decisions.place, decisions.item), decisions.click)
    np.add.at(shown, (decisions.place, decisions.item), 1)
    return (clicks + 0.5) / (shown + 100)


def answers(log: SingleLog, decisions: Decisions, policy: np.ndarray) -> dict[str, Weighed]:
    model = model_of(decisions)
    predictions = Predictions(
        model[decisions.place, decisions.item], (policy[decisions.place] * model[decisions.place]).sum(axis=1)
    )
    return {
        "ipw": single.ips(log),
        "snipw": single.snips(log),
        "dm": single.dm(log, predictions),
        "dr": single.dr(log, predictions),
    }


def from_scratch(decisions: Decisions, policy: np.ndarray) -> dict[str, float]:
    """The four formulas over rows, with nothing of ours."""
    model = model_of(decisions)
    weighted = weights = expected = corrected = 0.0
    for item, place, click, propensity in zip(
        decisions.item, decisions.place, decisions.click, decisions.propensity, strict=True
    ):
        weight = policy[place, item] / propensity
        direct = float(policy[place] @ model[place])
        weighted, weights = weighted + weight * click, weights + weight
        expected, corrected = expected + direct, corrected + direct + weight * (click - model[place, item])
    n = len(decisions.item)
    return {"ipw": weighted / n, "snipw": weighted / weights, "dm": expected / n, "dr": corrected / n}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_formulas_written_out_say_the_same(logs: dict[str, Decisions], name: str) -> None:
    log, decisions, policy = question(logs, name)
    ours = {each: weighed.values.mean() for each, weighed in answers(log, decisions, policy).items()}
    assert ours == pytest.approx(from_scratch(decisions, policy), abs=1e-12)


def test_our_own_dr_and_dm_are_near_those_of_the_callers_model(logs: dict[str, Decisions]) -> None:
    log, decisions, policy = question(logs, QUESTIONS[0])
    for make in (single.dm, single.dr):
        interval = interval_of(make(log).values, log.users)
        assert interval.low < from_scratch(decisions, policy)["ipw"] < interval.high


class TestWhatWasReallyEarned:
    """Each policy served a log of its own: the estimate and the other log's mean differ by their two errors at most."""

    @pytest.mark.parametrize("make", [single.ips, single.snips, single.dm, single.dr], ids=lambda make: make.__name__)
    @pytest.mark.parametrize("name", QUESTIONS)
    def test_the_difference_to_the_on_policy_mean_is_within_both_errors(
        self, logs: dict[str, Decisions], name: str, make: Any
    ) -> None:
        log, _, _ = question(logs, name)
        other = logs["bts" if name == QUESTIONS[0] else "random"]
        estimate = interval_of(make(log).values, log.users)
        on_policy = interval_of(other.click, np.arange(len(other.click)))
        difference = difference_of(estimate, on_policy)
        assert not difference.excludes_zero
        assert difference.standard_error > max(estimate.standard_error, on_policy.standard_error)

    def test_the_test_could_fail(self, logs: dict[str, Decisions]) -> None:
        """A policy that shows only what was clicked most earns more than `bts` did, beyond both errors."""
        decisions = logs["random"]
        best = np.zeros((PLACES, ITEMS))
        best[np.arange(PLACES), np.argmax(model_of(decisions), axis=1)] = 1
        estimate = interval_of(single.ips(asked(decisions, best)).values, np.arange(len(decisions.item)))
        on_policy = interval_of(logs["random"].click, np.arange(len(decisions.item)))
        assert difference_of(estimate, on_policy).mean > 0.01


class TestChecks:
    def test_the_random_log_is_as_random_as_it_says(self, logs: dict[str, Decisions]) -> None:
        log = asked(logs["random"], logs["bts"].shares(), UNIFORM)
        assert shown_as_logged(log).p_value > ALARM
        assert mean_weight(single.ips(log), log.users).p_value > ALARM

    def test_the_bts_log_is_not_uniform_and_that_is_seen(self, logs: dict[str, Decisions]) -> None:
        assert shown_as_logged(asked(logs["bts"], UNIFORM, UNIFORM)).p_value < 1e-100

    def test_its_weights_are_one_on_average_with_its_own_propensities_and_not_with_others(
        self, logs: dict[str, Decisions]
    ) -> None:
        bts = logs["bts"]
        log = asked(bts, logs["bts"].shares())
        assert mean_weight(single.ips(log), log.users).p_value > ALARM
        halved = Decisions(bts.item, bts.place, bts.click, np.minimum(1.0, bts.propensity * 1.3))
        assert mean_weight(single.ips(asked(halved, logs["bts"].shares())), log.users).p_value < ALARM


@pytest.fixture(scope="module")
def obp() -> Iterator[dict[str, ModuleType]]:
    """obp's two files of estimators, without the package around them, which trains networks and draws plots."""
    found = pytest.importorskip("obp", reason="obp is not installed here; the module's docstring says how")
    package = ModuleType("obp.ope")
    package.__path__ = [str(Path(found.__path__[0]) / "ope")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "obp.ope", package)
        if importlib.util.find_spec("torch") is None:
            # Of torch they need the name of a type.
            patch.setitem(sys.modules, "torch", ModuleType("torch"))
            patch.setattr(sys.modules["torch"], "Tensor", type("Tensor", (), {}), raising=False)
        yield {name: importlib.import_module(f"obp.ope.{name}") for name in ("estimators", "estimators_slate")}


@pytest.mark.parametrize("name", QUESTIONS)
def test_obp_says_the_same_of_single_decisions(
    logs: dict[str, Decisions], obp: dict[str, ModuleType], name: str
) -> None:
    log, decisions, policy = question(logs, name)
    n, theirs = len(decisions.item), obp["estimators"]
    given = {
        "reward": decisions.click,
        "action": decisions.item,
        "pscore": decisions.propensity,
        "position": decisions.place,
        "action_dist": np.tile(policy.T, (n, 1, 1)),
        "estimated_rewards_by_reg_model": np.tile(model_of(decisions).T, (n, 1, 1)),
    }
    estimators = {
        "ipw": theirs.InverseProbabilityWeighting(),
        "snipw": theirs.SelfNormalizedInverseProbabilityWeighting(),
        "dm": theirs.DirectMethod(),
        "dr": theirs.DoublyRobust(),
    }
    for key, weighed in answers(log, decisions, policy).items():
        assert weighed.values.mean() == pytest.approx(estimators[key].estimate_policy_value(**given), abs=WITHIN), key


def test_obp_says_the_same_of_lists(obp: dict[str, ModuleType]) -> None:
    """On drawn lists with promotions: Open Bandit's rows can't be put together to lists."""
    log = drawn_logs(4, users=200, logging=by_rank("0.7", 0.7), target=by_rank("0.4", 0.4))["cascade"]
    (n, k), theirs = log.rewards.shape, obp["estimators_slate"]
    given = {
        "slate_id": np.repeat(np.arange(n), k),
        "position": np.tile(np.arange(k), n),
        "reward": log.rewards.reshape(-1),
    }
    logged, target = np.cumprod(log.logged, axis=1), np.cumprod(log.target, axis=1)
    sips = theirs.SlateStandardIPS(len_list=k).estimate_policy_value(
        **given, pscore=np.repeat(logged[:, -1], k), evaluation_policy_pscore=np.repeat(target[:, -1], k)
    )
    iips = theirs.SlateIndependentIPS(len_list=k).estimate_policy_value(
        **given,
        pscore_item_position=log.logged_marginals.reshape(-1),
        evaluation_policy_pscore_item_position=log.target_marginals.reshape(-1),
    )
    rips = theirs.SlateRewardInteractionIPS(len_list=k).estimate_policy_value(
        **given, pscore_cascade=logged.reshape(-1), evaluation_policy_pscore_cascade=target.reshape(-1)
    )
    ours = [make(log).values.mean() for make in (slates.sips, slates.iips, slates.rips)]
    assert ours == pytest.approx([sips, iips, rips], abs=WITHIN)
