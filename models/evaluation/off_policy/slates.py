"""A list is decided on, place by place: what would another policy's lists have earned, over all their places?

The less people are assumed to do, the more of the list must be what the target policy would have shown, and the noisier
is the estimate.
"""

from __future__ import annotations

import numpy as np

from models.evaluation.off_policy.log import SlateLog
from models.evaluation.off_policy.methods import Method, Weighed, self_normalised, weighted
from models.evaluation.off_policy.reward_models import crossed_to_go

_WHOLE = "none about people: a place may earn by the whole list"
_OWN = "a place earns by its own item and its number alone"
_ABOVE = "a place earns by its item and those above it, not by those below (cascade)"

SIPS = Method("SIPS", _WHOLE, "Precup, Sutton and Singh 2000; named in McInerney and others 2020")
SNSIPS = Method("SIPS, self-normalised", f"{_WHOLE}; the log is large", "Swaminathan and Joachims 2015")
IIPS = Method("IIPS", _OWN, "Li, Abbasi-Yadkori and others 2018 (item-position click model)")
SNIIPS = Method("IIPS, self-normalised", f"{_OWN}; the log is large", "Swaminathan and Joachims 2015")
RIPS = Method("RIPS", _ABOVE, "McInerney and others 2020")
SNRIPS = Method("RIPS, self-normalised", f"{_ABOVE}; the log is large", "McInerney and others 2020")
CASCADE_DR = Method("cascade-DR", f"{_ABOVE}; the reward model only calms", "Kiyohara and others 2022")


def sips(log: SlateLog) -> Weighed:
    """Every place weighted by the whole list's ratio."""
    return weighted(SIPS, log.weights[:, -1:], log.rewards)


def sips_self_normalised(log: SlateLog) -> Weighed:
    """SIPS with weights that add up to the number of lists."""
    # One reward for the list: all its places have the same weight.
    return self_normalised(SNSIPS, log.weights[:, -1:], log.rewards.sum(axis=1, keepdims=True))


def iips(log: SlateLog) -> Weighed:
    """Every place weighted by its own item's ratio, whatever is above it."""
    return weighted(IIPS, log.marginal_weights, log.rewards)


def iips_self_normalised(log: SlateLog) -> Weighed:
    """IIPS with weights that add up, at each place, to the number of lists."""
    return self_normalised(SNIIPS, log.marginal_weights, log.rewards)


def rips(log: SlateLog) -> Weighed:
    """Every place weighted by the ratio of the list down to it."""
    return weighted(RIPS, log.weights, log.rewards)


def rips_self_normalised(log: SlateLog) -> Weighed:
    """RIPS with weights that add up, at each place, to the number of lists."""
    return self_normalised(SNRIPS, log.weights, log.rewards)


def cascade_dr(log: SlateLog) -> Weighed:
    """What reward models expect of the rest of the list at each place, corrected by RIPS of their errors."""
    weights = log.weights
    above = np.hstack([np.ones((len(weights), 1)), weights[:, :-1]])
    values = np.zeros(len(weights))
    to_go = crossed_to_go(log.kinds, log.rewards, log.target_kinds, log.users)
    for place, predicted in enumerate(to_go):
        # The models speak of everything from this place on; what they say of the next is taken out again there.
        values += weights[:, place] * (log.rewards[:, place] - predicted.shown) + above[:, place] * predicted.expected
    return Weighed(CASCADE_DR, values, weights)
