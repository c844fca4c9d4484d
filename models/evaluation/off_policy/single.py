"""One item is decided on: what would another policy's choice of it have earned?"""

from __future__ import annotations

import numpy as np

from models.evaluation.off_policy.log import SingleLog
from models.evaluation.off_policy.methods import Method, Weighed, self_normalised, weighted
from models.evaluation.off_policy.reward_models import Predictions, crossed, means_by_kind

_ALONE = "what an item earns depends on the item and the moment alone"

IPS = Method("IPS", f"{_ALONE}; the propensities are right", "Horvitz and Thompson 1952; Strehl and others 2010")
SNIPS = Method("SNIPS", f"{_ALONE}; the propensities are right; the log is large", "Swaminathan and Joachims 2015")
DM = Method("DM", "the reward model is right: items of one kind earn the same", "Beygelzimer and Langford 2009")
DR = Method("DR", f"{_ALONE}; the propensities are right (the model only calms)", "Dudík, Langford and Li 2011")


def ips(log: SingleLog) -> Weighed:
    """Rewards weighted by how much rather the target policy would have shown the item. Unbiased."""
    return weighted(IPS, log.weights[:, None], log.rewards[:, None])


def snips(log: SingleLog) -> Weighed:
    """IPS with weights that add up to the number of decisions."""
    return self_normalised(SNIPS, log.weights[:, None], log.rewards[:, None])


def dm(log: SingleLog, predictions: Predictions | None = None) -> Weighed:
    """What a reward model expects of the target policy's choices; no propensity of what was shown is looked at.

    predictions: of a model of the caller's, whose own error the interval then leaves out; None: the mean reward of
    each kind, with its error (the delta method: what a decision adds is what it moved its kind's mean by).
    """
    if predictions is not None:
        return Weighed(DM, predictions.expected, np.ones((len(log.rewards), 1)), is_importance=False)
    n, n_kinds = log.target_kinds.shape
    model = means_by_kind(log.kinds, log.rewards, n_kinds, prior=0.0)
    seen = np.bincount(log.kinds, minlength=n_kinds) / n
    asked = log.target_kinds.mean(axis=0)
    by_kind = np.divide(asked, seen, out=np.zeros(n_kinds), where=seen > 0)
    weights = by_kind[log.kinds]
    values = log.target_kinds @ model + weights * (log.rewards - model[log.kinds])
    return Weighed(DM, values, weights[:, None], is_importance=False, unseen=float(asked[seen == 0].sum()))


def dr(log: SingleLog, predictions: Predictions | None = None) -> Weighed:
    """What a reward model expects, corrected by IPS of its errors. Unbiased where the model did not see the decision.

    predictions: of a model of the caller's; None: the mean reward of each kind among other users
    """
    if predictions is None:
        predictions = crossed(log.kinds, log.rewards, log.target_kinds, log.users)
    values = predictions.expected + log.weights * (log.rewards - predictions.shown)
    return Weighed(DR, values, log.weights[:, None])
