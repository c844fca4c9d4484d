"""One training: extract → evaluate → fit → save → gate → activate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from app.errors import Invalid, Unavailable
from app.settings import Settings
from app.storage.release_files import current_id
from app.training import releases
from app.training.extract import Extracted, extract
from app.training.extract_sessions import extract_sessions
from models import artifacts
from models.artifacts import ArtifactError
from models.contracts import LearnedNextTrack
from models.evaluation.evaluate import evaluate as evaluate_recipes
from models.evaluation.leaderboard import Leaderboard
from models.next_recipes import attention_of, fit_next_recipes
from models.training import FittedRelease, fit_recipes

log = logging.getLogger(__name__)

Progress = Callable[[str, str, float], None]
"""Called with the phase, what it is at, and the share of the phase that is done."""

GATE_METRIC = "ndcg@10"
GATE_MARGIN = 0.1
"""A new release may be worse than the live one by this share of its NDCG@10: the two were measured on
different days, and a bad release is far below."""
FEWEST_INTERACTIONS = 100
PASSED = "passed"


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How a training ended.

    metrics:   of the routed service on the temporal split; empty where evaluation was left out
    activated: whether the release is served now
    gate:      what the gate said
    """

    release_id: str
    activated: bool
    gate: str
    metrics: dict[str, float]
    interactions: int
    items: int
    users: int

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def train(
    engine: Engine,
    settings: Settings,
    *,
    progress: Progress,
    evaluate: bool = True,
    activate: bool = True,
    seed: int = 0,
) -> TrainReport:
    """Fits every recipe on what Postgres holds and writes a release; serves it where the gate lets it pass.

    Raises Invalid where there is too little to learn from, Unavailable where the release can't be written.
    """
    extracted = _extracted(engine, settings, progress)
    dataset = extracted.dataset
    metrics = {}
    if evaluate:
        metrics = _metrics(evaluate_recipes(dataset, seed=seed, progress=partial(progress, "evaluate")))
    fitted = fit_recipes(dataset, seed=seed, progress=partial(progress, "fit"))
    fitted = replace(fitted, next_tracks=_next_tracks(engine, extracted, seed, partial(progress, "next track")))
    release_id = releases.new_release_id()
    progress("release", "save", 0.0)
    _save(settings.releases_dir / release_id, fitted, extracted, metrics)
    manifest = artifacts.read_manifest(settings.releases_dir / release_id)
    releases.register(engine, release_id, {key: value for key, value in manifest.items() if key != "files"})
    gate = _gate(settings.releases_dir, metrics)
    activated = activate and gate == PASSED
    if activated:
        progress("release", "activate", 0.5)
        releases.activate(engine, settings, release_id, actor="training")
    progress("release", release_id, 1.0)
    return TrainReport(
        release_id=release_id,
        activated=activated,
        gate=gate,
        metrics=metrics,
        interactions=len(dataset.interactions),
        items=dataset.n_items,
        users=dataset.n_users,
    )


def leaderboards(engine: Engine, settings: Settings, *, progress: Progress, seeds: int = 1) -> list[Leaderboard]:
    """Every recipe on the newest fifth of the stored events, fitted on the rest; one per seed. Raises Invalid."""
    dataset = _extracted(engine, settings, progress).dataset
    return [
        evaluate_recipes(dataset, seed=seed, progress=partial(progress, f"evaluate with seed {seed}"))
        for seed in range(seeds)
    ]


def _extracted(engine: Engine, settings: Settings, progress: Progress) -> Extracted:
    extracted = extract(engine, settings.feedback_weights, progress=partial(progress, "extract"))
    found = len(extracted.dataset.interactions)
    if found < FEWEST_INTERACTIONS:
        raise Invalid(
            f"{found} interactions are too few to train on ({FEWEST_INTERACTIONS} are the least); import a data "
            "set with `segue import`, or send events first"
        )
    return extracted


def _next_tracks(
    engine: Engine, extracted: Extracted, seed: int, watch: Callable[[str, float], None]
) -> dict[str, LearnedNextTrack]:
    """Nothing where there are too few listening sessions; self-attention is among it where torch is installed."""
    sessions = extract_sessions(engine, extracted)
    if sessions is None:
        return {}
    attention = attention_of if find_spec("torch") is not None else None
    return fit_next_recipes(sessions, attention=attention, seed=seed, progress=watch)


def _save(folder: Path, fitted: FittedRelease, extracted: Extracted, metrics: dict[str, float]) -> None:
    timestamps = extracted.dataset.interactions.timestamps
    try:
        artifacts.save(
            folder,
            fitted,
            database_id=str(extracted.database_id),
            row_of_position=extracted.row_of_position,
            data_window=(float(timestamps[0]), float(timestamps[-1])),
            metrics=metrics,
        )
    except OSError as error:
        # numpy only says how many bytes it got rid of.
        cause = error.strerror or f"{error}; is the disk full?"
        raise Unavailable(f"release {folder.name} can't be written to {folder.parent}: {cause}") from error


def _metrics(board: Leaderboard) -> dict[str, float]:
    """NDCG@10 of the service as it routes, for all, warm and cold users, and of all-time popularity beside it."""
    rows = {(row.recommender, row.users): row.ndcg.mean for row in board.rows}
    wanted = {
        GATE_METRIC: ("routed", "all"),
        f"{GATE_METRIC} warm": ("routed", "warm"),
        f"{GATE_METRIC} cold": ("routed", "cold"),
        f"{GATE_METRIC} of all-time popularity": ("popularity all", "all"),
    }
    return {name: rows[key] for name, key in wanted.items() if key in rows and math.isfinite(rows[key])}


def _gate(releases_dir: Path, metrics: dict[str, float]) -> str:
    """PASSED, or why the release should not replace the live one. Where either is unmeasured, it passes.

    That it loads and answers is checked by the activation itself.
    """
    live_id = current_id(releases_dir)
    if live_id is None or GATE_METRIC not in metrics:
        return PASSED
    try:
        live = artifacts.read_manifest(releases_dir / live_id)["metrics"].get(GATE_METRIC)
    except ArtifactError as error:
        log.warning("the live release can't be compared with: %s", error)
        return PASSED
    if live is None or metrics[GATE_METRIC] >= live * (1 - GATE_MARGIN):
        return PASSED
    return (
        f"{GATE_METRIC} {metrics[GATE_METRIC]:.4f} is more than {GATE_MARGIN:.0%} below the live release's {live:.4f}"
    )
