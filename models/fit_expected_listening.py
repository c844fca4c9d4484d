"""Fitting `ExpectedListening`: what is usual from earlier sessions, its weights from later ones.

What is usual of artists and tracks is shrunk by the ratio of the variances within and between them (the James–Stein
estimate for unequal counts; Efron and Morris, "Data analysis using Stein's estimator and its generalizations", 1975).
The components are let in one by one. Each must foretell held-out sessions better than what is there already, by more
than twice the standard error of that; what brings nothing keeps the weight 0. Every fifth of these sessions is foretold
by weights that were learned from the others: a handful of weights is no reason to judge by a part of them. Listens of
one session share its listener and mood, so it is sessions that are counted, not listens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.data.sessions import Sessions
from models.retrieval.next_track.expected_listening import COMPONENTS, ExpectedListening

_RIDGE = 1.0
_STEPS = 12
_FOLDS = 5
_ERRORS = 2.0
"""Standard errors that a gain must exceed: of forty components that are nothing but chance one gets in."""
_LEAST_DAMPING = 1e-6
Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """Listens that nobody has learned from, in order of time.

    evidence:  float64[n, c + 1], by component, and 1
    fractions: float64[n], what was heard
    sessions:  int64[n], in which, ascending
    """

    evidence: Floats
    fractions: Floats
    sessions: NDArray[np.int64]


def unweighted(sessions: Sessions) -> ExpectedListening | None:
    """What is usual; None where nobody measured."""
    known = np.isfinite(sessions.fractions)
    if not known.any():
        return None
    tracks, session = sessions.tracks[known], sessions.of_listen[known]
    heard = sessions.fractions[known].astype(np.float64)
    mean = heard.mean()
    artists = np.full(sessions.n_items, -1, np.int32) if sessions.artists is None else sessions.artists
    # Tracks without an artist share one.
    artist = artists - artists.min()
    of_artist = _shrunk(heard - mean, artist[tracks], np.zeros(int(artist.max()) + 1))
    of_track = _shrunk(heard - mean, tracks, of_artist[artist])
    damping = _damping(heard - mean - of_track[tracks], session)
    return ExpectedListening(
        np.clip(mean + of_track, 0, 1).astype(np.float32),
        np.array([damping], np.float32),
        np.zeros(len(COMPONENTS) + 1, np.float32),
        np.full(1, -np.inf, np.float32),
    )


def _shrunk(values: Floats, groups: NDArray[np.integer], usual: Floats) -> Floats:
    """float64[g]: means by group, drawn towards what is usual of each."""
    damping = _damping(values - usual[groups], groups)
    counts = np.bincount(groups, minlength=len(usual))
    sums = np.bincount(groups, values, len(usual))
    return np.asarray((sums + damping * usual) / (counts + damping))


def _damping(values: Floats, groups: NDArray[np.integer]) -> float:
    """The variance within groups over that between them: as how many values the belief counts that all are alike.

    Above 0: of a group without values nothing else is believed.
    """
    counts, sums, squares = (np.bincount(groups, each) for each in (np.ones(len(values)), values, values**2))
    many = counts > 1
    if not many.any():
        return 1e6
    counts, means, squares = counts[many], sums[many] / counts[many], squares[many]
    within = float((squares - counts * means**2).sum() / (counts - 1).sum())
    between = float((means**2).mean() - (within / counts).mean())
    return max(within / max(between, 1e-6 * max(within, 1e-9)), _LEAST_DAMPING)


def choose_weights(rows: Rows) -> tuple[NDArray[np.float32] | None, dict[str, dict[str, float]]]:
    """The weights, None where nothing foretells anything, and the loss with each component that was let in."""
    if not blocks_of(rows.sessions, _FOLDS).any():
        # So few sessions can't be foretold by one another.
        return None, {}
    kept: list[int] = []
    foretold = _crossed(rows, kept)
    losses, figures = log_losses(foretold, rows.fractions), {"mean": _figures(foretold, rows)}
    for component, name in enumerate(COMPONENTS):
        foretold = _crossed(rows, [*kept, component])
        tried = log_losses(foretold, rows.fractions)
        if is_beyond_chance(losses - tried, rows.sessions):
            kept, losses = [*kept, component], tried
            figures[name] = _figures(foretold, rows)
    if not kept:
        return None, figures
    weights = np.zeros(len(COMPONENTS) + 1, np.float32)
    weights[[*kept, -1]] = _logistic(rows.evidence[:, [*kept, -1]], rows.fractions)
    return weights, figures


def is_beyond_chance(gains: Floats, sessions: NDArray[np.int64]) -> bool:
    """Whether their mean exceeds 0 by two standard errors, those of one session (int64[n]) taken for one draw."""
    _, of_gain = np.unique(sessions, return_inverse=True)
    beyond = np.bincount(of_gain, gains - gains.mean())
    return bool(gains.sum() > _ERRORS * np.sqrt((beyond**2).sum()))


def blocks_of(sessions: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """int64[n]: a number below `count` for each row, in order of time, the same for all of a session."""
    first = np.searchsorted(sessions, sessions)
    return np.asarray(first * count // max(len(sessions), 1))


def _crossed(rows: Rows, kept: list[int]) -> Floats:
    """float64[n]: each fifth, in order of time, foretold by the four others."""
    evidence = rows.evidence[:, [*kept, -1]]
    foretold, fold = np.empty(len(evidence)), blocks_of(rows.sessions, _FOLDS)
    for part in (fold == number for number in range(_FOLDS)):
        weights = _logistic(evidence[~part], rows.fractions[~part])
        foretold[part] = 1 / (1 + np.exp(-evidence[part] @ weights))
    return foretold


def _figures(foretold: Floats, rows: Rows) -> dict[str, float]:
    """Of everything that was let in so far."""
    return {
        "listens": len(foretold),
        "nats": round(float(log_losses(foretold, rows.fractions).mean()), 5),
        "rmse": round(float(np.sqrt(((foretold - rows.fractions) ** 2).mean())), 5),
    }


def log_losses(foretold: Floats, heard: Floats) -> Floats:
    """float64[n], in nats."""
    chance = np.clip(foretold, 1e-6, 1 - 1e-6)
    return np.asarray(-(heard * np.log(chance) + (1 - heard) * np.log1p(-chance)))


def _logistic(evidence: Floats, fractions: Floats) -> Floats:
    """float64[c]: Newton's steps with a ridge on all but the last, which is the offset."""
    spread = np.append(np.maximum(evidence[:, :-1].std(axis=0), 1e-6), 1.0)
    scaled = evidence / spread
    ridge = np.append(np.full(len(spread) - 1, _RIDGE), 1e-6)
    weights = np.zeros(len(spread))
    for _ in range(_STEPS):
        foretold = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        slope = scaled.T @ (foretold - fractions) + ridge * weights
        bend = (scaled * (foretold * (1 - foretold) + 1e-9)[:, None]).T @ scaled + np.diag(ridge)
        weights -= np.linalg.solve(bend, slope)
    return np.asarray(weights / spread)
