"""Postgres → Dataset: everything that a fit may look at, as of one moment, in time order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, text

from app.feedback.signals import KINDS, signs_of, weights_of
from app.storage.copy_out import POSTGRES_EPOCH, copy_out
from app.storage.database import database_id
from models.contracts import Progress, unwatched
from models.data.dataset import Dataset, Interactions, ItemTable

_ITEMS_PER_FETCH = 2_000
_ARRAY_HEADER_BYTES = 20


@dataclass(frozen=True, slots=True)
class Extracted:
    """A Dataset, and what its positions are called in the database.

    row_of_position: int32[n_items], ascending: the item row behind each item position
    item_ids:        the external id behind each item position
    row_of_user:     int32[n_users], ascending: the user row behind each user position
    database_id:     the database that it is from; a release made of it belongs to that one
    window:          times of the oldest and the newest interaction, None where there is none
    """

    dataset: Dataset
    row_of_position: NDArray[np.int32]
    item_ids: list[str]
    row_of_user: NDArray[np.int32]
    database_id: UUID
    window: tuple[datetime, datetime] | None


def extract(
    engine: Engine,
    weights: Mapping[str, float],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    progress: Progress = unwatched,
) -> Extracted:
    """All items that are not deleted, and the interactions with them from `since` to before `until`.

    weights: of each kind of event, as in the settings. What users did who were erased is left out. An
    interaction's time is the earlier of its timestamp and its receipt, so that a client's clock that runs
    ahead can't make it the newest.
    """
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with snapshot.begin() as db:
        db.execute(text("set local statement_timeout = 0"))
        identity = database_id(db)
        rows, item_ids, items = _items(db, progress)
        stored = _stored(db, since, until, progress)
        erased = erased_users(db)
    stored = stored[np.isin(stored["item"], rows) & ~before_erasure(stored, erased)]
    stored = stored[np.lexsort((stored["seq"], stored["time"]))]
    users, user_positions = np.unique(stored["user"], return_inverse=True)
    interactions = Interactions(
        user_positions.astype(np.int32),
        np.searchsorted(rows, stored["item"]).astype(np.int32),
        weights_of(KINDS, stored["kind"], stored["value"], weights),
        signs_of(KINDS, stored["kind"], stored["value"]),
        stored["value"].astype(np.float32),
        _unix_seconds(stored["time"]),
    )
    return Extracted(
        Dataset(interactions, items, len(users)), rows, item_ids, users.astype(np.int32), identity,
        _window(interactions.timestamps),
    )  # fmt: skip


_STORED = np.dtype(
    [("user", np.int32), ("item", np.int32), ("kind", np.int16), ("value", np.float64), ("time", np.int64),
     ("seq", np.int64)]
)  # fmt: skip

_ERASED = np.dtype([("user", np.int32), ("at", np.int64)])

# The condition on the bare timestamp follows from the one before it and has an index.
_SELECT_STORED = """
    select user_row, item_row, coalesce(array_position(%(kinds)s, kind) - 1, 0)::int2,
        coalesce(value, 'NaN'), least(timestamp, received_at), seq
    from interactions
    where (%(since)s::timestamptz is null
           or least(timestamp, received_at) >= %(since)s and timestamp >= %(since)s)
        and (%(until)s::timestamptz is null or least(timestamp, received_at) < %(until)s)
"""

_SELECT_ITEMS = """
    select row, item_id, kind, title, text, categories, tags, creator,
        extract(epoch from published_at)::float8 as published, array_send(features) as features
    from items where deleted_at is null order by row
"""

_SELECT_ERASED = """
    select row, erased_at from users join tombstones on user_hash = sha256(convert_to(user_id, 'UTF8'))
"""


def _stored(db: Connection, since: datetime | None, until: datetime | None, progress: Progress) -> NDArray[np.void]:
    expected = db.execute(
        text("select greatest(reltuples, 1) from pg_class where oid = 'interactions'::regclass")
    ).scalar_one()
    return copy_out(
        db,
        _SELECT_STORED,
        {"kinds": list(KINDS), "since": since, "until": until},
        _STORED,
        on_rows=lambda rows: progress("interactions", min(1.0, rows / expected)),
    )


def erased_users(db: Connection) -> NDArray[np.void]:
    """Users who were erased and came back, and when; the others have no row any more."""
    return copy_out(db, _SELECT_ERASED, {}, _ERASED)


def before_erasure(stored: NDArray[np.void], erased: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether each interaction is of a life of its user that was erased (catalog.users.erased_at)."""
    gone: NDArray[np.bool_] = np.zeros(len(stored), np.bool_)
    for user, at in erased:
        gone |= (stored["user"] == user) & (stored["time"] <= at)
    return gone


def _items(db: Connection, progress: Progress) -> tuple[NDArray[np.int32], list[str], ItemTable]:
    progress("items", 0.0)
    found = db.execute(text(_SELECT_ITEMS).execution_options(stream_results=True, yield_per=_ITEMS_PER_FETCH)).all()
    progress("items", 1.0)
    table = ItemTable(
        categories=[tuple(item.categories) for item in found],
        tags=[tuple(item.tags) for item in found],
        texts=[" ".join(filter(None, (item.title, item.text))) for item in found],
        creators=[item.creator for item in found],
        kinds=[item.kind for item in found],
        published=np.array([item.published for item in found], np.float64),
        features=_features([item.features for item in found]),
    )
    return np.array([item.row for item in found], np.int32), [item.item_id for item in found], table


def _features(sent: Sequence[memoryview | None]) -> NDArray[np.float32]:
    """float32[n, d] from real[] in its binary form; d is the commonest length, other lengths become NaN."""
    lengths = Counter((len(each) - _ARRAY_HEADER_BYTES) // 8 for each in sent if each)
    width = max(lengths.most_common(1)[0][0], 0) if lengths else 0
    features = np.full((len(sent), width), np.nan, np.float32)
    element = np.dtype([("bytes", ">i4"), ("value", ">f4")])
    for position, each in enumerate(sent):
        if each and len(each) == _ARRAY_HEADER_BYTES + 8 * width:
            features[position] = np.frombuffer(each, element, offset=_ARRAY_HEADER_BYTES)["value"]
    return features


def _unix_seconds(microseconds: NDArray[np.int64]) -> NDArray[np.float64]:
    return microseconds / 1e6 + POSTGRES_EPOCH


def _window(timestamps: NDArray[np.float64]) -> tuple[datetime, datetime] | None:
    if not len(timestamps):
        return None
    return datetime.fromtimestamp(timestamps[0], UTC), datetime.fromtimestamp(timestamps[-1], UTC)
