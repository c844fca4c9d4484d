"""Fitting the blend of the next track: its ranker learns from sessions that its recommenders have not seen.

The newest tenth of the sessions is held out, everything else is fitted on the earlier ones, and what followed each
beginning of a held-out session is a choice among the candidates. How large the ranker is, is chosen on the newest
third of these choices; then it learns from all of them, and what it stands on is fitted on all sessions. In the same
way it is found out whether the user's past says anything, and what foretells how long a track is heard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.contracts import Progress, unwatched
from models.data.pasts import Pasts
from models.data.sessions import Prefix, Prefixes, Sessions, split_newest
from models.fit_expected_listening import Rows, choose_weights, unweighted
from models.next_blend import NOTHING, OF_THE_PAST, NextBlend, Seen, log_sum
from models.ranking.listwise import Choices, ListwiseRanker, fit_listwise
from models.retrieval.next_track.answers import LONGEST, Heard

HELD_OUT = 0.1
MOST_CHOICES = 15_000
_FEWEST_CHOICES = 200
_OFFERED = 120
_JUDGED = 1 / 3
_SIZES = (0, 16, 32)
"""Hidden units that are tried."""
_EPOCHS = 12
_WORTH_ASKING = 1.01
"""The past must find so much more than the blend does without it: less may be chance, and asking takes time."""

Fit = Callable[[Sessions], Mapping[str, Any]]


def fit_next_blend(sessions: Sessions, fit: Fit, *, seed: int = 0, progress: Progress = unwatched) -> NextBlend:
    """fit: recommenders by name (`models.next_blend.SPEAKERS`, popular tracks, self-attention) from any sessions."""
    earlier, newest = split_newest(sessions, HELD_OUT)
    progress("next_blend: fitting on earlier sessions", 0.0)
    before, pasts = fit(earlier), Pasts.between(earlier, newest)
    ranker, chosen = learn_ranker(before, newest, pasts=pasts, seed=seed, progress=progress)
    asks_past = bool(chosen.get("asks_past", False))
    blend = NextBlend.of(before, ranker, chosen, unweighted(earlier), asks_past=asks_past)
    weights, figures = learn_listening(blend, newest, pasts, seed=seed)
    progress("next_blend: fitting on all sessions", 0.6)
    usual = unweighted(sessions)
    listening = None if usual is None or weights is None else replace(usual, weights=weights)
    chosen |= {"listening": figures}
    return NextBlend.of(dict(fit(sessions)), ranker, chosen, listening, asks_past=asks_past)


def learn_listening(
    blend: NextBlend, newest: Sessions, pasts: Pasts | None, *, seed: int = 0
) -> tuple[NDArray[np.float32] | None, dict[str, dict[str, float]]]:
    """Weights of the components of `ExpectedListening`, and the loss with and without each; newest: as `learn_ranker`.

    Only what the blend names is learned from, for only of that it is asked.
    """
    if blend.listening is None:
        return None, {}
    prefixes = newest.prefixes().sample(MOST_CHOICES, seed=seed)
    evidence, fractions = [], []
    for prefix, past, heard in zip(
        prefixes, pasts_of(prefixes, pasts), newest.fractions[prefixes.nexts].tolist(), strict=True
    ):
        session = _session(prefix)
        seen = blend.seen(session, past=past)
        place = _place(seen, prefix)
        if place is None or np.isnan(heard):
            continue
        scores = blend.ranker.scores(seen.features, seen.context)
        choice = scores[place : place + 1] - log_sum(scores)
        asked = seen.positions[place : place + 1]
        attended = blend.attended_listening(seen.state, asked)
        evidence.append(blend.listening.evidence(session, past, asked, attended, choice)[:, 0])
        fractions.append(heard)
    if len(fractions) < _FEWEST_CHOICES:
        return None, {}
    rows = Rows(np.array(evidence, np.float64), np.array(fractions))
    return choose_weights(rows)


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
    """
    prefixes = newest.listened_prefixes().sample(MOST_CHOICES, seed=seed)
    found = _learned(fitted, prefixes, None, seed=seed, progress=progress)
    if pasts is None or OF_THE_PAST not in fitted or "tried" not in found[1]:
        return found
    with_past = _learned(fitted, prefixes, pasts, sizes=(found[1]["hidden"],), seed=seed, progress=progress)
    if with_past[1].get("worth", 0.0) <= _WORTH_ASKING * found[1]["worth"]:
        return found[0], found[1] | {"with_past": with_past[1]["tried"]}
    return with_past[0], with_past[1] | {"asks_past": True, "without_past": found[1]["tried"]}


def _learned(
    fitted: Mapping[str, Any],
    prefixes: Prefixes,
    pasts: Pasts | None,
    *,
    sizes: Sequence[int] = _SIZES,
    seed: int,
    progress: Progress,
) -> tuple[ListwiseRanker, dict[str, Any]]:
    asks_past = pasts is not None
    blend = NextBlend.of(fitted, unlearned(fitted, asks_past=asks_past), {}, asks_past=asks_past)
    views = list(views_of(blend, prefixes, progress, pasts))
    learnable = [(view, place) for view, place in views if place is not None]
    if len(learnable) < _FEWEST_CHOICES:
        return unlearned(fitted), {"choices": len(learnable)}
    cut = round(len(views) * (1 - _JUDGED))
    tried = {}
    for hidden in sizes:
        ranker = fit_listwise(choices_of(views[:cut], seed), seed=seed, hidden=hidden, epochs=_EPOCHS)
        tried[hidden] = measured(ranker, views[cut:])
    # HR and MRR are of different sizes: the sum of their ratios to the best decides.
    best = np.max(list(tried.values()), axis=0)
    hidden = max(tried, key=lambda size: float((tried[size] / best).sum()))
    figures = {str(size): {"hr": float(found[0]), "mrr": float(found[1])} for size, found in tried.items()}
    ranker = fit_listwise(choices_of(views, seed), seed=seed, hidden=hidden, epochs=_EPOCHS)
    # The geometric mean compares two blends as the sum of ratios compares sizes.
    worth = float(np.sqrt(tried[hidden].prod()))
    return ranker, {"choices": len(learnable), "hidden": hidden, "tried": figures, "worth": worth}


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
    """What the user heard before the session of each."""
    latest, past = -1, NOTHING
    for session in prefixes.session_of.tolist():
        if pasts is not None and session != latest:
            latest, past = session, Heard(*pasts.before(session))
        yield past


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
