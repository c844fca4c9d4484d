"""The recommenders of a replay's release, each alone and in this process: what the service's answers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, text
from threadpoolctl import threadpool_limits

from app.catalog.content import load_item_table
from app.cli.replay_plan import Plan
from app.feedback.weights import mass_of, sign_of, weight_of
from app.serving.pipeline import LOOKAHEAD
from app.settings import Settings
from app.storage.release_files import current_id
from models.artifacts import LoadedRelease, load
from models.contracts import Recommender, Scores
from models.data.dataset import Interactions
from models.evaluation.replay import Ranks
from models.evaluation.replay_recipes import Stream, recipe_ranks


def recipes_alone(
    engine: Engine, settings: Settings, plan: Plan, *, k: int, watch: Callable[[int, int], None]
) -> dict[str, Ranks]:
    """The rank of each case's item by recommender of the current release, after the replay fed the database."""
    release_id = current_id(settings.releases_dir)
    if release_id is None:
        raise LookupError("no release was activated, so there are no recommenders to ask")
    release = load(settings.releases_dir / release_id)
    rows = _rows(engine)
    content = _new_content(engine, release, rows)
    stream = Stream(
        events=_interactions(plan, _user_rows(engine), _positions(release, rows), settings),
        masses=_masses(plan, settings),
        is_case=plan.log.first_meetings,
        cut=plan.cut,
        n_fitted=len(release.content),
    )

    def speakers(known: int) -> Mapping[str, Recommender]:
        new = content[: known - stream.n_fitted]
        return {name: each.with_new_items(new) for name, each in release.recommenders.items()}

    with threadpool_limits(1, "blas"):  # one query is too small to be shared out
        return recipe_ranks(stream, speakers, feed=plan.feed, k=k, ranked=k + LOOKAHEAD, watch=watch)


def _rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as db:
        found = db.execute(text("select item_id, row from items where deleted_at is null"))
        return {item_id: row for item_id, row in found}


def _new_rows(release: LoadedRelease, rows: Mapping[str, int]) -> NDArray[np.int32]:
    """Rows of the items that came after the release, in the order in which they came."""
    return np.setdiff1d(np.array(list(rows.values()), np.int32), release.rows.row_of_position).astype(np.int32)


def _new_content(engine: Engine, release: LoadedRelease, rows: Mapping[str, int]) -> Scores:
    new = _new_rows(release, rows)
    if not len(new):
        return np.empty((0, release.content.shape[1]), np.float32)
    with engine.connect() as db:
        return release.encoder.transform(load_item_table(db, new))


def _user_rows(engine: Engine) -> dict[str, int]:
    with engine.connect() as db:
        return {user_id: row for user_id, row in db.execute(text("select user_id, row from users"))}


def _positions(release: LoadedRelease, rows: Mapping[str, int]) -> dict[str, int]:
    """The release's position of each item, those that came since behind the others."""
    all_rows = np.concatenate([release.rows.row_of_position, _new_rows(release, rows)]).tolist()
    position_of_row = {row: position for position, row in enumerate(all_rows)}
    return {item_id: position_of_row[row] for item_id, row in rows.items()}


def _interactions(
    plan: Plan, user_rows: Mapping[str, int], positions: Mapping[str, int], settings: Settings
) -> Interactions:
    """The log as the service numbers it, which decides between equals; -1 for what was never fed."""
    events, weights = plan.events, settings.feedback_weights
    return Interactions(
        np.array([user_rows.get(event.user_id, -1) for event in events], np.int32),
        np.array([positions.get(event.item_id, -1) for event in events], np.int32),
        np.array([weight_of(event.kind, event.value, weights) for event in events], np.float32),
        np.array([sign_of(event.kind, event.value) for event in events], np.int8),
        np.array([np.nan if event.value is None else event.value for event in events], np.float32),
        plan.log.timestamps,
    )


def _masses(plan: Plan, settings: Settings) -> NDArray[np.float64]:
    weights = settings.feedback_weights
    return np.array([mass_of(event.kind, event.value, weights) for event in plan.events], np.float64)
