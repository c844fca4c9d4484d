"""Fitting `ExpectedListening`: what is usual from earlier sessions, its weights from later ones.

What is usual of artists and tracks is shrunk by the ratio of the variances within and between them (the James–Stein
estimate for unequal counts; Efron and Morris, "Data analysis using Stein's estimator and its generalizations", 1975).
The components are let in one by one. Each must foretell held-out sessions better than what is there already, by more
than twice the standard error of that; what brings nothing keeps the weight 0. Every fifth of these sessions is foretold
by weights that were learned from the others: a handful of weights is no reason to judge by a part of them.
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
Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """Listens that nobody has learned from, in order of time.

    evidence:  float64[n, c + 1], by component, and 1
    fractions: float64[n], what was heard
    """

    evidence: Floats
    fractions: Floats


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
    beyond = heard - mean - of_track[tracks]
    user = session if sessions.users is None else sessions.users[session]
    damping = [_damping(beyond, group) for group in (session, user)]
    return ExpectedListening(
        np.clip(mean + of_track, 0, 1).astype(np.float32),
        np.array(damping, np.float32),
        np.zeros(len(COMPONENTS) + 1, np.float32),
    )


def _shrunk(values: Floats, groups: NDArray[np.integer], usual: Floats) -> Floats:
    """float64[g]: means by group, drawn towards what is usual of each."""
    damping = _damping(values - usual[groups], groups)
    counts = np.bincount(groups, minlength=len(usual))
    sums = np.bincount(groups, values, len(usual))
    return np.asarray((sums + damping * usual) / (counts + damping))


def _damping(values: Floats, groups: NDArray[np.integer]) -> float:
    """The variance within groups over that between them: as how many values the belief counts that all are alike."""
    counts, sums, squares = (np.bincount(groups, each) for each in (np.ones(len(values)), values, values**2))
    many = counts > 1
    if not many.any():
        return 1e6
    counts, means, squares = counts[many], sums[many] / counts[many], squares[many]
    within = float((squares - counts * means**2).sum() / (counts - 1).sum())
    between = float((means**2).mean() - (within / counts).mean())
    return within / max(between, 1e-6 * max(within, 1e-9)) if within > 0 else 0.0


def choose_weights(rows: Rows) -> tuple[NDArray[np.float32] | None, dict[str, dict[str, float]]]:
    """The weights, None where nothing foretells anything, and the loss with each component that was let in."""
    kept: list[int] = []
    foretold = _crossed(rows, kept)
    losses, figures = log_losses(foretold, rows.fractions), {"mean": _figures(foretold, rows)}
    for component, name in enumerate(COMPONENTS):
        foretold = _crossed(rows, [*kept, component])
        tried = log_losses(foretold, rows.fractions)
        gain = losses - tried
        if gain.mean() > _ERRORS * gain.std() / np.sqrt(len(gain)):
            kept, losses = [*kept, component], tried
            figures[name] = _figures(foretold, rows)
    if not kept:
        return None, figures
    weights = np.zeros(len(COMPONENTS) + 1, np.float32)
    weights[[*kept, -1]] = _logistic(rows.evidence[:, [*kept, -1]], rows.fractions)
    return weights, figures


def _crossed(rows: Rows, kept: list[int]) -> Floats:
    """float64[n]: each fifth, in order of time, foretold by the four others."""
    evidence = rows.evidence[:, [*kept, -1]]
    foretold = np.empty(len(evidence))
    for part in np.array_split(np.arange(len(evidence)), _FOLDS):
        others = np.ones(len(evidence), np.bool_)
        others[part] = False
        weights = _logistic(evidence[others], rows.fractions[others])
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
