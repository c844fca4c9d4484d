"""Whether the live signals are what a recount of all events gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text

from app.live import checkpoint, log
from models.live.state import LiveState

RELATIVE, ABSOLUTE = 1e-6, 1e-6
"""Answers are float32; and a sum from which something was taken back keeps a rest of rounding."""
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Checked:
    """items, users: how many the recount knows of; since: mark of the checkpoint, None where there is none of use"""

    differences: list[str]
    items: int
    users: int
    since: int | None
    until: int


def check(engine: Engine, weights: Mapping[str, float]) -> Checked:
    """Compares the checkpoint and the events since with a recount, both as of one moment; others may go on writing."""
    with engine.execution_options(isolation_level="REPEATABLE READ").connect() as db, db.begin():
        db.execute(text("set local statement_timeout = 0"))
        recounted, until = log.counted_anew(db, weights)
        n_items, n_users = recounted.extent()
        stored = checkpoint.stored(db)
        if stored is None or stored.fingerprint != checkpoint.fingerprint(weights):
            return Checked([], n_items, n_users, None, until)
        state, mark = checkpoint.load(db), stored.watermark
        while mark < until:
            horizon = log.look(db, mark)
            state.fold(log.changes(db, weights, state, horizon, since=mark))
            mark = horizon.until
        return Checked(differences(state, recounted), n_items, n_users, stored.watermark, until)


def differences(state: LiveState, recounted: LiveState) -> list[str]:
    """Where the two differ, one line each, at most 20 and a line for the rest; none where they agree."""
    found = [*_of_items(state, recounted), *_of_users(state, recounted)]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return found[:SHOWN] + more


def _of_items(state: LiveState, recounted: LiveState) -> list[str]:
    found = []
    at = max(state.as_of, recounted.as_of, 0.0)
    sums = {f"count of half-life {life:.0f} s": index for index, life in enumerate(state.half_lives)}
    mine, true = state.counts(at), recounted.counts(at)
    for name, index in sums.items():
        found += _unequal(name, mine[index], true[index], close=True)
    found += _unequal("total", state.totals(), recounted.totals(), close=True)
    found += _unequal("last event", state.last_at(), recounted.last_at(), nothing=-np.inf)
    for item in range(max(len(state), len(recounted))):
        if not np.array_equal(state.visitors(item), recounted.visitors(item)):
            found.append(f"item row {item}: visitors {state.visitors(item)} instead of {recounted.visitors(item)}")
    return found


def _of_users(state: LiveState, recounted: LiveState) -> list[str]:
    return [
        f"user row {user}: trail {state.trail(user)} instead of {recounted.trail(user)}"
        for user in range(max(state.extent()[1], recounted.extent()[1]))
        if not np.array_equal(state.trail(user), recounted.trail(user))
    ]


def _unequal(
    name: str, mine: NDArray[Any], true: NDArray[Any], *, nothing: float = 0.0, close: bool = False
) -> list[str]:
    """nothing: what an item has that one of the two never met."""
    n = max(len(mine), len(true))
    mine, true = (np.pad(each, (0, n - len(each)), constant_values=nothing) for each in (mine, true))
    equal = np.isclose(mine, true, rtol=RELATIVE, atol=ABSOLUTE) if close else mine == true
    return [f"item row {item}: {name} {mine[item]} instead of {true[item]}" for item in np.flatnonzero(~equal)]
