"""Made-up logs of drawn lists whose truth is known exactly: every list that can be shown is enumerated.

A world has moments (with an item order each), users of several kinds who come several times, and people who earn a
place by its item alone, by what is above it too, or by the whole list. Some moments have a pin at the second place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.evaluation.off_policy.log import SlateLog
from models.evaluation.off_policy.plackett_luce import NOBODY, marginals, walk

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Behaviour = Literal["independent", "cascade", "whole"]
BEHAVIOURS: tuple[Behaviour, ...] = ("independent", "cascade", "whole")

CANDIDATES, DRAWN = 6, 3
PLACES = DRAWN + 1
MOMENTS = 3
PINNED = (False, True, False)
"""Of each moment: whether a promotion has the second place. Where none has, the last place is empty."""
EXAMINED = np.array([1.0, 0.8, 0.6, 0.5])
VISITS, TASTE = np.array([1, 2, 5]), np.array([1.25, 1.0, 0.75])
"""Of each kind of user: how many lists are asked for, and how readily something is clicked. Regulars click less."""

_generator = np.random.default_rng(7)
APPEAL = np.sort(_generator.uniform(0.05, 0.55, (MOMENTS, CANDIDATES)), axis=1)[:, ::-1].copy()
APPEAL[2] = APPEAL[2, [2, 0, 1, 5, 3, 4]]
"""Of each candidate in each moment: the chance of a click where it is looked at. The third moment ranks badly."""
PIN_APPEAL = 0.3
KINDS = CANDIDATES + 2
PIN_KIND, EMPTY_KIND = KINDS - 2, KINDS - 1
"""A candidate is a kind of its own. Moments are not told apart: the policies here do not tell them apart either."""


@dataclass(frozen=True)
class Policy:
    """Draws by Plackett–Luce; logits: float64[moments, candidates]."""

    name: str
    logits: Floats

    def of(self, moments: Ints) -> Floats:
        return self.logits[moments]

    @property
    def marginals(self) -> Floats:
        """float64[moments, drawn, candidates]."""
        return np.stack([marginals(logits, DRAWN) for logits in self.logits])


def by_rank(name: str, temperature: float, order: list[int] | None = None) -> Policy:
    """A power law over ranks, as the service draws; order: candidates from the best."""
    ranks = np.empty(CANDIDATES)
    ranks[order or list(range(CANDIDATES))] = np.arange(1, CANDIDATES + 1)
    return Policy(name, np.tile(-np.log(ranks) / temperature, (MOMENTS, 1)))


def on_page(chosen: Ints, moments: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """int64[n, PLACES]: candidates by place, NOBODY at pins and at the empty end; and where the pins are."""
    n = len(chosen)
    page, pins = np.full((n, PLACES), NOBODY), np.zeros((n, PLACES), np.bool_)
    pinned = np.array(PINNED)[moments]
    pins[pinned, 1] = True
    page[:, 0] = chosen[:, 0]
    page[~pinned, 1:DRAWN] = chosen[~pinned, 1:]
    page[pinned, 2:] = chosen[pinned, 1:]
    return page, pins


def clicks(page: Ints, pins: NDArray[np.bool_], moments: Ints, taste: Floats, behaviour: Behaviour) -> Floats:
    """float64[n, PLACES]: the chance of a click at each place."""
    shown = (page != NOBODY) | pins
    appeal = np.where(pins, PIN_APPEAL, APPEAL[moments[:, None], np.maximum(page, 0)]) * shown
    chance = EXAMINED * appeal
    if behaviour != "independent":
        chance[:, 1:] *= 1 - np.maximum.accumulate(appeal, axis=1)[:, :-1]
    if behaviour == "whole":
        chance[:, :-1] *= 1 - appeal[:, 1:]
    return np.asarray(chance * taste[:, None])


@cache
def truth(policy_key: tuple[tuple[float, ...], ...], behaviour: Behaviour) -> tuple[float, float]:
    """What a list earns on average under a policy, and what its first place does; by enumeration."""
    lists = np.array(list(permutations(range(CANDIDATES), DRAWN)))
    by_moment = np.zeros((MOMENTS, 2))
    for moment in range(MOMENTS):
        logits = np.tile(policy_key[moment], (len(lists), 1))
        steps = [each[np.arange(len(lists)), lists[:, place]] for place, each in enumerate(walk(logits, lists))]
        probability = np.prod(steps, axis=0)
        moments = np.full(len(lists), moment)
        page, pins = on_page(lists, moments)
        earned = clicks(page, pins, moments, np.ones(len(lists)), behaviour)
        by_moment[moment] = probability @ earned.sum(axis=1), probability @ earned[:, 0]
    # Per list, not per user: those who come often count more.
    taste = (VISITS * TASTE).sum() / VISITS.sum()
    whole, first = by_moment.mean(axis=0) * taste
    return float(whole), float(first)


def truth_of(policy: Policy, behaviour: Behaviour) -> tuple[float, float]:
    return truth(tuple(map(tuple, policy.logits.tolist())), behaviour)


def drawn_logs(
    seed: int, *, users: int, logging: Policy, target: Policy, logged_as: Policy | None = None
) -> dict[Behaviour, SlateLog]:
    """One draw of the world: the same lists, clicked on by people of each behaviour.

    logged_as: the policy whose probabilities are written down, where that is not the one that drew
    """
    generator = np.random.default_rng(seed)
    kind_of_user = generator.integers(0, len(VISITS), users)
    user = np.repeat(np.arange(users), VISITS[kind_of_user])
    moments = generator.integers(0, MOMENTS, len(user))
    logits = logging.of(moments)
    chosen = np.argsort(-(logits + generator.gumbel(size=logits.shape)), axis=1)[:, :DRAWN]
    page, pins = on_page(chosen, moments)
    luck = generator.random(page.shape)
    kinds = np.where(pins, PIN_KIND, np.where(page == NOBODY, EMPTY_KIND, page))
    logged, logged_kinds = _probabilities(logged_as or logging, page, moments, kinds)
    asked, target_kinds = _probabilities(target, page, moments, kinds)
    log = SlateLog(
        rewards=np.zeros(page.shape),
        logged=logged,
        target=asked,
        logged_marginals=_marginals(logged_as or logging, chosen, page, moments),
        target_marginals=_marginals(target, chosen, page, moments),
        users=user,
        kinds=kinds,
        logged_kinds=logged_kinds,
        target_kinds=target_kinds,
    )
    taste = TASTE[kind_of_user[user]]
    clicked = {each: luck < clicks(page, pins, moments, taste, each) for each in BEHAVIOURS}
    return {each: replace(log, rewards=clicked[each].astype(np.float64)) for each in BEHAVIOURS}


def _probabilities(policy: Policy, page: Ints, moments: Ints, kinds: Ints) -> tuple[Floats, Floats]:
    rows = np.arange(len(page))
    given, by_kind = np.ones(page.shape), np.zeros((*page.shape, KINDS))
    for place, probabilities in enumerate(walk(policy.of(moments), page)):
        drawn = page[:, place] != NOBODY
        given[drawn, place] = probabilities[drawn, page[drawn, place]]
        by_kind[rows[~drawn], place, kinds[~drawn, place]] = 1.0
        by_kind[drawn, place, :CANDIDATES] = probabilities[drawn]
    return given, by_kind


def _marginals(policy: Policy, chosen: Ints, page: Ints, moments: Ints) -> Floats:
    of_drawn = policy.marginals[moments[:, None], np.arange(DRAWN), chosen]
    found = np.ones(page.shape)
    found[page != NOBODY] = of_drawn.reshape(-1)
    return found
