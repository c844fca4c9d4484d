"""Fitting the blend of the next track: its ranker learns from sessions that its recommenders have not seen.

The newest tenth of the sessions is held out, everything else is fitted on the earlier ones, and what followed each
beginning of a held-out session is a choice among the candidates. How large the ranker is, and whether the user's past
says anything, is chosen on the newest third of these choices; then it learns from all of them, and what it stands on is
fitted on all sessions.

What foretells how long a track is heard is learned and judged on all held-out sessions. The ranker's share is asked of
rankers that learned from other blocks of them: one that met a choice knows its answer, and answers were heard for long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.contracts import Progress, unwatched
from models.data.pasts import Pasts
from models.data.sessions import Prefix, Prefixes, Sessions, split_newest
from models.fit_expected_listening import Rows, blocks_of, choose_weights, is_beyond_chance, unweighted
from models.membership import is_among
from models.next_blend import NOTHING, OF_THE_PAST, NextBlend, Seen, log_sum
from models.ranking.listwise import Choices, ListwiseRanker, fit_listwise
from models.retrieval.next_track.answers import LONGEST, Heard
from models.retrieval.next_track.expected_listening import COMPONENTS, ExpectedListening

HELD_OUT = 0.1
MOST_CHOICES = 15_000
_FEWEST_CHOICES = 200
_OFFERED = 120
_JUDGED = 1 / 3
_BLOCKS = 3
"""Of held-out sessions, by time: the ranker that is asked of each learned from the others."""
_SIZES = (0, 16, 32)
"""Hidden units that are tried."""
_EPOCHS = 12
_WORTH_ASKING = 0.01
"""By this share the past must find more than the blend does without it, for asking takes time."""

Floats = NDArray[np.float64]
Fit = Callable[[Sessions], Mapping[str, Any]]


def fit_next_blend(sessions: Sessions, fit: Fit, *, seed: int = 0, progress: Progress = unwatched) -> NextBlend:
    """fit: recommenders by name (`models.next_blend.SPEAKERS`, popular tracks, self-attention) from any sessions."""
    earlier, newest = split_newest(sessions, HELD_OUT)
    progress("next_blend: fitting on earlier sessions", 0.0)
    before, pasts = fit(earlier), Pasts.between(earlier, newest)
    ranker, chosen = learn_ranker(before, newest, pasts=pasts, seed=seed, progress=progress)
    asks_past = bool(chosen.get("asks_past", False))
    blend = NextBlend.of(before, ranker, chosen, unweighted(earlier), asks_past=asks_past)
    learned, figures = learn_listening(blend, newest, pasts, seed=seed)
    progress("next_blend: fitting on all sessions", 0.6)
    usual = unweighted(sessions)
    listening = None
    if usual is not None and learned is not None:
        listening = replace(usual, weights=learned.weights, lowest=learned.lowest)
    chosen |= {"listening": figures}
    return NextBlend.of(dict(fit(sessions)), ranker, chosen, listening, asks_past=asks_past)


def learn_listening(
    blend: NextBlend, newest: Sessions, pasts: Pasts | None, *, seed: int = 0
) -> tuple[ExpectedListening | None, dict[str, dict[str, float]]]:
    """The blend's, with weights, and the loss with and without each component; newest: as `learn_ranker`.

    Only what the blend names is learned from, for only of that it is asked.
    """
    if blend.listening is None:
        return None, {}
    prefixes = newest.prefixes().sample(MOST_CHOICES, seed=seed)
    sessions, heard = prefixes.session_of, newest.fractions[prefixes.nexts]
    views = list(views_of(blend, prefixes, pasts=pasts))
    rows, evidence = [], []
    for row, (prefix, (seen, place), ranker) in enumerate(
        zip(prefixes, views, rankers_of_others(blend, prefixes, views, seed=seed), strict=True)
    ):
        if place is None or ranker is None or np.isnan(heard[row]):
            continue
        scores = ranker.scores(seen.features, seen.context)
        choice = scores[place : place + 1] - log_sum(scores)
        asked = seen.positions[place : place + 1]
        attended = blend.attended_listening(seen.state, asked)
        rows.append(row)
        evidence.append(blend.listening.evidence(_session(prefix), asked, attended, choice)[:, 0])
    if len(rows) < _FEWEST_CHOICES:
        return None, {}
    told = np.array(evidence)
    weights, figures = choose_weights(Rows(told.astype(np.float64), heard[rows].astype(np.float64), sessions[rows]))
    if weights is None:
        return None, figures
    lowest = told[:, COMPONENTS.index("choice")].min(keepdims=True)
    return replace(blend.listening, weights=weights, lowest=lowest), figures


def rankers_of_others(
    blend: NextBlend, prefixes: Prefixes, views: list[View], *, seed: int
) -> Iterator[ListwiseRanker | None]:
    """For each beginning a ranker like the blend's that never met its session; None where that has nothing to learn."""
    block, is_listened = blocks_of(prefixes.session_of, _BLOCKS), prefixes.sessions.is_listened[prefixes.nexts]
    for number in range(_BLOCKS):
        others = [views[row] for row in np.flatnonzero((block != number) & is_listened).tolist()]
        ranker: ListwiseRanker | None = None
        if "hidden" not in blend.chosen:
            # It never learned anything.
            ranker = blend.ranker
        elif any(place is not None for _, place in others):
            ranker = fit_listwise(choices_of(others, seed), seed=seed, hidden=blend.chosen["hidden"], epochs=_EPOCHS)
        yield from [ranker] * int((block == number).sum())


def learn_ranker(
    fitted: Mapping[str, Any],
    newest: Sessions,
    *,
    pasts: Pasts | None = None,
    seed: int = 0,
    progress: Progress = unwatched,
) -> tuple[ListwiseRanker, dict[str, Any]]:
    """A ranker for these recommenders, and what was measured on the way; `newest` must be unknown to them.

    pasts: what users heard before those sessions; it is looked at where that finds more of what came next
           (`is_worth_asking`)
    """
    prefixes = newest.listened_prefixes().sample(MOST_CHOICES, seed=seed)
    without = _learned(fitted, prefixes, None, seed=seed, progress=progress)
    if pasts is None or OF_THE_PAST not in fitted or "tried" not in without.chosen:
        return without.ranker, without.chosen
    with_past = _learned(fitted, prefixes, pasts, sizes=(without.chosen["hidden"],), seed=seed, progress=progress)
    if not is_worth_asking(with_past.gained, without.gained, without.sessions):
        return without.ranker, without.chosen | {"with_past": with_past.chosen.get("tried", {})}
    return with_past.ranker, with_past.chosen | {"asks_past": True, "without_past": without.chosen["tried"]}


def is_worth_asking(with_past: Floats, without: Floats, sessions: NDArray[np.int64]) -> bool:
    """Whether the past finds enough more, and more than chance does.

    with_past, without: float64[n, 2], what both gained by the same questions (`gained_by`); sessions: int64[n], of each
    """
    if len(with_past) != len(without):
        return False
    # HR and MRR are of different sizes: each counts by its share.
    more = ((with_past - without) / np.maximum(without.mean(axis=0), 1e-9)).mean(axis=1)
    return bool(more.mean() > _WORTH_ASKING) and is_beyond_chance(more, sessions)


class _Learned(NamedTuple):
    """A ranker, what was measured on the way, and by which questions it was judged.

    gained:   float64[n, 2], of `gained_by`
    sessions: int64[n], which session each question is from
    """

    ranker: ListwiseRanker
    chosen: dict[str, Any]
    gained: Floats
    sessions: NDArray[np.int64]


def _learned(
    fitted: Mapping[str, Any],
    prefixes: Prefixes,
    pasts: Pasts | None,
    *,
    sizes: Sequence[int] = _SIZES,
    seed: int,
    progress: Progress,
) -> _Learned:
    asks_past = pasts is not None
    blend = NextBlend.of(fitted, unlearned(fitted, asks_past=asks_past), {}, asks_past=asks_past)
    views = list(views_of(blend, prefixes, progress, pasts))
    learnable = [(view, place) for view, place in views if place is not None]
    if len(learnable) < _FEWEST_CHOICES:
        return _Learned(unlearned(fitted), {"choices": len(learnable)}, np.empty((0, 2)), np.empty(0, np.int64))
    sessions, cut = prefixes.session_of, round(len(views) * (1 - _JUDGED))
    # No session is on both sides, unless there is but one.
    cut = int(np.searchsorted(sessions, sessions[cut])) or cut
    gained, tried = {}, {}
    for hidden in sizes:
        ranker = fit_listwise(choices_of(views[:cut], seed), seed=seed, hidden=hidden, epochs=_EPOCHS)
        gained[hidden] = gained_by(ranker, views[cut:])
        tried[hidden] = gained[hidden].mean(axis=0)
    # HR and MRR are of different sizes: the sum of their ratios to the best decides.
    best = np.max(list(tried.values()), axis=0)
    hidden = max(tried, key=lambda size: float((tried[size] / best).sum()))
    figures = {str(size): {"hr": float(found[0]), "mrr": float(found[1])} for size, found in tried.items()}
    ranker = fit_listwise(choices_of(views, seed), seed=seed, hidden=hidden, epochs=_EPOCHS)
    chosen = {"choices": len(learnable), "hidden": hidden, "tried": figures}
    return _Learned(ranker, chosen, gained[hidden], sessions[cut:])


View = tuple[Seen, int | None]
"""What the ranker sees, and where among it stands what was chosen; None: nobody named it."""


def views_of(
    blend: NextBlend, prefixes: Prefixes, progress: Progress = unwatched, pasts: Pasts | None = None
) -> list[View]:
    views: list[View] = []
    for done, (prefix, past) in enumerate(zip(prefixes, pasts_of(prefixes, pasts), strict=True)):
        if done % 1_000 == 0:
            progress("next_blend: asking everybody", 0.1 + 0.4 * done / len(prefixes))
        seen = blend.seen(_session(prefix), past=past)
        views.append((seen, _place(seen, prefix)))
    return views


def pasts_of(prefixes: Prefixes, pasts: Pasts | None) -> Iterator[Heard]:
    """What the user heard before the session of each, less what the beginning has: so it is served too."""
    latest, past = -1, NOTHING
    for session, prefix in zip(prefixes.session_of.tolist(), prefixes, strict=True):
        if pasts is not None and session != latest:
            latest, past = session, Heard(*pasts.before(session))
        others = ~is_among(past.positions, prefix.tracks)
        yield past if others.all() else Heard(past.positions[others], past.fractions[others])


def _session(prefix: Prefix) -> Heard:
    return Heard(prefix.tracks[-LONGEST:], prefix.fractions[-LONGEST:])


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


def gained_by(ranker: ListwiseRanker, views: list[View], cut: int = 20) -> Floats:
    """float64[n, 2]: hits and reciprocal ranks at 20 of all views, whether anybody named the answer or not."""
    gained = np.zeros((len(views), 2))
    for row, (seen, place) in enumerate(views):
        if place is None:
            continue
        scores = ranker.scores(seen.features, seen.context)
        ahead = int((scores > scores[place]).sum() + (scores[:place] == scores[place]).sum())
        if ahead < cut:
            gained[row] = 1, 1 / (ahead + 1)
    return gained


def unlearned(fitted: Mapping[str, Any], *, asks_past: bool = False) -> ListwiseRanker:
    """What is used where sessions are too few to learn from: everybody's shares count alike."""
    blend = NextBlend.of(fitted, None, {}, asks_past=asks_past)  # type: ignore[arg-type]
    seen = blend.seen(NOTHING)
    wide = np.zeros(len(seen.features), np.float32)
    wide[0 : 2 * len(blend.speakers) : 2] = 1
    c = len(seen.context)
    nothing = np.zeros((0, len(wide)), np.float32)
    return ListwiseRanker(
        wide, np.zeros((c, len(wide)), np.float32), nothing, np.zeros((c, 0), np.float32),
        np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros((2, c), np.float32),
    )  # fmt: skip
