"""Every recommender of the next track by name: how it is fitted, and how it is built again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from models.contracts import Arrays, LearnedNextTrack, Parameters, Progress, unwatched
from models.data.sessions import Sessions
from models.fit_next_blend import fit_next_blend
from models.next_blend import ATTENTION, NextBlend
from models.retrieval.next_track.attention import SessionAttention
from models.retrieval.next_track.linked_tracks import LinkedTracks
from models.retrieval.next_track.popular_tracks import PopularTracks, fit_popular_tracks
from models.retrieval.next_track.recency_ease import fit_recency_ease
from models.retrieval.next_track.session_knn import SessionKnn, fit_session_knn
from models.retrieval.next_track.transitions import fit_co_listens, fit_transition_counter

COUNTED: dict[str, Callable[[Sessions], LearnedNextTrack]] = {
    "popular_tracks": fit_popular_tracks,
    "transition_counter": fit_transition_counter,
    "co_listens": fit_co_listens,
    "session_knn": fit_session_knn,
}
"""Fitted in seconds, and what the blend always stands on."""
RIVALS = COUNTED | {"recency_ease": fit_recency_ease}
"""With what is compared but not served: EASE names too few tracks of a large catalogue to bring the blend anything."""
SERVED = NextBlend.name

Load = Callable[[Parameters, Arrays, Mapping[str, Any]], LearnedNextTrack]
LOADS: dict[str, Load] = {
    "popular_tracks": lambda p, a, _: PopularTracks.from_parts(p, a),
    "transition_counter": lambda p, a, _: LinkedTracks.from_parts(p, a),
    "co_listens": lambda p, a, _: LinkedTracks.from_parts(p, a),
    "recency_ease": lambda p, a, _: LinkedTracks.from_parts(p, a),
    "session_knn": lambda p, a, _: SessionKnn.from_parts(p, a),
    ATTENTION: lambda p, a, _: SessionAttention.from_parts(p, a),
    SERVED: NextBlend.from_parts,
}
"""In the order in which they are built: what the blend stands on comes before it."""
_RESUMED_EPOCHS = 1
_RESUMED_RATE = 5e-4


FitAttention = Callable[[Sessions, SessionAttention | None, int, Progress], SessionAttention]
"""Takes sessions, what was learned before from some of them, a seed and who watches."""


def fit_next_recipes(
    sessions: Sessions, *, attention: FitAttention | None = None, seed: int = 0, progress: Progress = unwatched
) -> dict[str, LearnedNextTrack]:
    """The blend and all that it stands on, in the order of LOADS.

    attention: `attention_of`, which needs the extra `train`; None: a blend without self-attention
    """
    learned: list[SessionAttention] = []

    def fit(part: Sessions) -> dict[str, LearnedNextTrack]:
        listened = part.listened()
        fitted = {name: fit_one(listened) for name, fit_one in COUNTED.items()}
        if attention is not None:
            learned.append(attention(part, learned[-1] if learned else None, seed, progress))
            fitted[ATTENTION] = learned[-1]
        return fitted

    blend = fit_next_blend(sessions, fit, seed=seed, progress=progress)
    stands_on: dict[str, Any] = {blend.popular.name: blend.popular, **blend.speakers}
    if blend.attention is not None:
        stands_on[ATTENTION] = blend.attention
    return {**{name: stands_on[name] for name in LOADS if name in stands_on}, blend.name: blend}


def attention_of(
    sessions: Sessions, resumed: SessionAttention | None, seed: int, progress: Progress
) -> SessionAttention:
    """From the start, or a little longer on more sessions: the newest are most of what changes."""
    # Imported here because torch takes seconds and half a gigabyte, and serving never needs it.
    from models.retrieval.next_track.attention_fit import Training, fit_session_attention  # noqa: PLC0415

    longer = None if resumed is None else Training(epochs=_RESUMED_EPOCHS, rate=_RESUMED_RATE)
    return fit_session_attention(sessions, resumed=resumed, training=longer, seed=seed, progress=progress)
