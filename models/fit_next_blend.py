"""Fitting the blend of the next track: its ranker learns from sessions that its recommenders have not seen.

The newest tenth of the sessions is held out, everything else is fitted on the earlier ones, and what followed each
beginning of a held-out session is a choice among the candidates. How large the ranker is, is chosen on the newest
third of these choices; then it learns from all of them, and what it stands on is fitted on all sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contracts import Progress, unwatched
from models.data.sessions import Prefix, Prefixes, Sessions, split_newest
from models.next_blend import ATTENTION, NextBlend, Seen
from models.ranking.listwise import Choices, ListwiseRanker, fit_listwise
from models.retrieval.next_track.answers import LONGEST, Heard
from models.retrieval.next_track.attention import SessionAttention

HELD_OUT = 0.1
MOST_CHOICES = 15_000
_FEWEST_CHOICES = 200
_OFFERED = 120
_JUDGED = 1 / 3
_SIZES = (0, 16, 32)
"""Hidden units that are tried."""
_EPOCHS = 12

Fit = Callable[[Sessions], Mapping[str, Any]]


def fit_next_blend(sessions: Sessions, fit: Fit, *, seed: int = 0, progress: Progress = unwatched) -> NextBlend:
    """fit: recommenders by name (`models.next_blend.SPEAKERS`, popular tracks, self-attention) from any sessions."""
    earlier, newest = split_newest(sessions, HELD_OUT)
    progress("next_blend: fitting on earlier sessions", 0.0)
    before = fit(earlier)
    ranker, chosen = learn_ranker(before, newest, seed=seed, progress=progress)
    gain = listening_gain(before[ATTENTION], newest, seed=seed) if ATTENTION in before else 0.0
    progress("next_blend: fitting on all sessions", 0.6)
    fitted = dict(fit(sessions))
    if ATTENTION in fitted:
        chosen |= {"listening_gain": gain}
        fitted[ATTENTION] = replace(fitted[ATTENTION], knows_listening=gain > 0)
    return NextBlend.of(fitted, ranker, chosen)


def listening_gain(attention: SessionAttention, newest: Sessions, *, seed: int = 0) -> float:
    """How much better than one figure for all tracks it foretells what is heard of them, in nats for each track.

    newest: sessions that it has not learned from. 0 where nobody measured. Not above 0, its word is worth nothing:
    every rule on expected listening would follow noise.
    """
    if not attention.knows_listening:
        return 0.0
    prefixes = newest.prefixes().sample(MOST_CHOICES, seed=seed)
    fractions = newest.fractions[prefixes.nexts].astype(np.float64)
    foretold = np.array([_foretold(attention, prefix) for prefix in prefixes])
    known = np.isfinite(fractions)
    if not known.any():
        return 0.0
    heard, usual = fractions[known], np.full(int(known.sum()), fractions[known].mean())
    return _log_loss(usual, heard) - _log_loss(foretold[known], heard)


def _foretold(attention: SessionAttention, prefix: Prefix) -> float:
    state = attention.state(Heard(prefix.tracks[-LONGEST:], prefix.fractions[-LONGEST:]))
    return float(attention.expected_listening(state, np.array([prefix.target]))[0])


def _log_loss(foretold: NDArray[np.float64], heard: NDArray[np.float64]) -> float:
    chance = np.clip(foretold, 1e-6, 1 - 1e-6)
    return float(-(heard * np.log(chance) + (1 - heard) * np.log1p(-chance)).mean())


def learn_ranker(
    fitted: Mapping[str, Any], newest: Sessions, *, seed: int = 0, progress: Progress = unwatched
) -> tuple[ListwiseRanker, dict[str, Any]]:
    """A ranker for these recommenders, and what was measured on the way; `newest` must be unknown to them."""
    blend = NextBlend.of(fitted, unlearned(fitted), {})
    prefixes = newest.listened_prefixes().sample(MOST_CHOICES, seed=seed)
    views = list(views_of(blend, prefixes, progress))
    learnable = [(view, place) for view, place in views if place is not None]
    if len(learnable) < _FEWEST_CHOICES:
        return unlearned(fitted), {"choices": len(learnable)}
    cut = round(len(views) * (1 - _JUDGED))
    tried = {}
    for hidden in _SIZES:
        ranker = fit_listwise(choices_of(views[:cut], seed), seed=seed, hidden=hidden, epochs=_EPOCHS)
        tried[hidden] = measured(ranker, views[cut:])
    # HR and MRR are of different sizes: the sum of their ratios to the best decides.
    best = np.max(list(tried.values()), axis=0)
    hidden = max(tried, key=lambda size: float((tried[size] / best).sum()))
    figures = {str(size): {"hr": float(found[0]), "mrr": float(found[1])} for size, found in tried.items()}
    ranker = fit_listwise(choices_of(views, seed), seed=seed, hidden=hidden, epochs=_EPOCHS)
    return ranker, {"choices": len(learnable), "hidden": hidden, "tried": figures}


View = tuple[Seen, int | None]
"""What the ranker sees, and where among it stands what was chosen; None: nobody named it."""


def views_of(blend: NextBlend, prefixes: Prefixes, progress: Progress = unwatched) -> list[View]:
    views: list[View] = []
    for done, prefix in enumerate(prefixes):
        if done % 1_000 == 0:
            progress("next_blend: asking everybody", 0.1 + 0.4 * done / len(prefixes))
        seen = blend.seen(Heard(prefix.tracks[-30:], prefix.fractions[-30:]))
        views.append((seen, _place(seen, prefix)))
    return views


def _place(seen: Seen, prefix: Prefix) -> int | None:
    place = int(np.searchsorted(seen.positions, prefix.target))
    return place if place < len(seen.positions) and seen.positions[place] == prefix.target else None


def choices_of(views: list[View], seed: int) -> Choices:
    """At most 120 candidates of each, what was chosen first, the others drawn."""
    rng = np.random.default_rng(seed)
    learnable = [(seen, place) for seen, place in views if place is not None]
    first = learnable[0][0]
    features = np.zeros((len(learnable), len(first.features), _OFFERED), np.float32)
    offered = np.zeros((len(learnable), _OFFERED), np.bool_)
    for row, (seen, place) in enumerate(learnable):
        others = np.delete(np.arange(len(seen.positions)), place)
        if len(others) >= _OFFERED:
            others = rng.choice(others, _OFFERED - 1, replace=False)
        features[row, :, 0] = seen.features[:, place]
        features[row, :, 1 : len(others) + 1] = seen.features[:, others]
        offered[row, : len(others) + 1] = True
    return Choices(features, offered, np.stack([seen.context for seen, _ in learnable]))


def measured(ranker: ListwiseRanker, views: list[View], cut: int = 20) -> NDArray[np.float64]:
    """float64[2]: HR and MRR at 20 of all views, whether anybody named the answer or not."""
    gained = np.zeros((len(views), 2))
    for row, (seen, place) in enumerate(views):
        if place is None:
            continue
        scores = ranker.scores(seen.features, seen.context)
        ahead = int((scores > scores[place]).sum() + (scores[:place] == scores[place]).sum())
        if ahead < cut:
            gained[row] = 1, 1 / (ahead + 1)
    return np.asarray(gained.mean(axis=0))


def unlearned(fitted: Mapping[str, Any]) -> ListwiseRanker:
    """What is used where sessions are too few to learn from: everybody's shares count alike."""
    blend = NextBlend.of(fitted, None, {})  # type: ignore[arg-type]
    seen = blend.seen(Heard(np.zeros(0, np.int32), np.zeros(0, np.float32)))
    wide = np.zeros(len(seen.features), np.float32)
    wide[0 : 2 * len(blend.speakers) : 2] = 1
    c = len(seen.context)
    nothing = np.zeros((0, len(wide)), np.float32)
    return ListwiseRanker(
        wide, np.zeros((c, len(wide)), np.float32), nothing, np.zeros((c, 0), np.float32),
        np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros((2, c), np.float32),
    )  # fmt: skip
