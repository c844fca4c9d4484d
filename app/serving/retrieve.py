"""Asks the recommenders of a chain until the list is long enough; one that fails is passed over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from app import telemetry
from app.feedback.user_view import UserView
from app.serving.model_host import ServedRelease
from app.serving.slate import Run, Shown
from models.contracts import Candidates, History, Positions, Query, Reason, Recommender

log = logging.getLogger(__name__)

_FALLBACK = Reason("fallback")


class Retrieved(NamedTuple):
    """Candidates, best first: those of the leading recommender, then what others filled up with.

    leader:  the first recommender that had an answer
    missing: recommenders that the chain names and that failed, or that the release does not have
    """

    candidates: Sequence[Shown]
    leader: str
    missing: tuple[str, ...]


def retrieve(release: ServedRelease, chain: Sequence[str], query: Query) -> Retrieved:
    """`query.limit` items where the catalogue has that many; reasons are given later, to what is shown."""
    found: Sequence[Shown] = ()
    given: list[Positions] = []
    leader, missing = chain[-1], []
    for name in chain:
        left = query.limit - len(found)
        if left <= 0:
            break
        asked = query if not found else replace(query, limit=left, excluded=np.concatenate([query.excluded, *given]))
        candidates = _ask(release.recommenders.get(name), name, asked)
        if candidates is None:
            missing.append(name)
        elif len(candidates.positions):
            leader = name if not found else leader
            shown = _shown(release, name, candidates)
            if found:
                telemetry.FALLBACKS.labels(name).inc()
                found = (*found, *below(found, shown))
            else:
                found = shown
            given.append(candidates.positions)
    return Retrieved(found, leader, tuple(missing))


def _ask(recommender: Recommender | None, name: str, query: Query) -> Candidates | None:
    if recommender is None:
        return None
    try:
        return recommender.recommend(query)
    except Exception:
        telemetry.RECOMMENDER_FAILURES.labels(name).inc()
        log.exception("recommender %s failed; asking the next", name)
        return None


def _shown(release: ServedRelease, name: str, candidates: Candidates) -> Run:
    rows = release.row_of_position[candidates.positions].tolist()
    return Run(rows, candidates.scores.tolist(), name, _FALLBACK)


def below(found: Sequence[Shown], more: Sequence[Shown]) -> list[Shown]:
    """`more` with scores shifted below those found: each recommender has a scale of its own."""
    if not found or not more:
        return list(more)
    # Not the last one's: a pin, whose score says nothing, may stand there.
    shift = min(shown.score for shown in found) - 1.0 - max(shown.score for shown in more)
    return [shown._replace(score=shown.score + shift) for shown in more]


def with_reasons(release: ServedRelease, slate: Sequence[Shown], query: Query, leader: str) -> list[Shown]:
    """The slate with the reason that its recommender gives for each item; what filled up says `fallback`."""
    mine = [shown.row for shown in slate if shown.source == leader and not shown.promoted]
    recommender = release.recommenders.get(leader)
    if recommender is None or not mine:
        return list(slate)
    positions = release.positions(np.array(mine, np.int32))
    known = positions[positions >= 0]
    rows = release.row_of_position[known].tolist()
    given = dict(zip(rows, recommender.reasons(query, known), strict=True))
    return [_told(release, shown, given[shown.row]) if shown.row in given else shown for shown in slate]


def _told(release: ServedRelease, shown: Shown, reason: Reason) -> Shown:
    if reason.seed is not None:
        reason = Reason(reason.code, int(release.row_of_position[reason.seed]))
    # `_replace` takes three times as long.
    return Shown(*shown[:4], reason, shown.propensity)


def history_of(view: UserView, release: ServedRelease) -> History:
    """The user's past as far as the release knows the items."""
    return release.past_of(view).history
