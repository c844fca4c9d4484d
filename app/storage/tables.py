"""The SQLAlchemy tables; migrations/ makes the same ones, and a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.storage.columns import CURRENT_XID, Xid8, instant, metadata

NOW = func.now()

database_identity = Table(
    "database_identity",
    metadata,
    # One row: a release made from another database is refused by this id.
    Column("only", Boolean, CheckConstraint("only", name="single"), primary_key=True, server_default=text("true")),
    Column("database_id", UUID(as_uuid=True), nullable=False, server_default=text("gen_random_uuid()")),
)

versions = Table(
    "versions",
    metadata,
    # Bumped in the transaction of the change, copied to Redis, compared by inequality: see catalog.versions.
    Column("name", Text, primary_key=True),
    Column("epoch", UUID(as_uuid=True), nullable=False, server_default=text("gen_random_uuid()")),
    Column("seq", BigInteger, nullable=False, server_default=text("0")),
)

users = Table(
    "users",
    metadata,
    Column("row", Integer, Identity(start=0, minvalue=0), primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("attributes", JSONB, nullable=False, server_default=text("'{}'")),
    Column("preferred_categories", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    instant("created_at", nullable=False, server_default=NOW),
    instant("updated_at", nullable=False, server_default=NOW),
    Index("uq_users_user_id", "user_id", unique=True),
)

items = Table(
    "items",
    metadata,
    Column("row", Integer, Identity(start=0, minvalue=0), primary_key=True),
    Column("item_id", Text, nullable=False),
    Column("kind", Text),
    Column("title", Text),
    Column("text", Text),
    Column("categories", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("tags", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("creator", Text),
    instant("published_at"),
    Column("features", ARRAY(REAL)),
    Column("attributes", JSONB, nullable=False, server_default=text("'{}'")),
    instant("created_at", nullable=False, server_default=NOW),
    instant("updated_at", nullable=False, server_default=NOW),
    # A deleted item keeps its row number (never reused) and its interactions; its content is cleared.
    instant("deleted_at"),
    Column("changed_xid", Xid8, nullable=False, server_default=CURRENT_XID),
    Index("uq_items_item_id", "item_id", unique=True),
    Index("ix_items_changed_xid", "changed_xid"),
)

event_ids = Table(
    "event_ids",
    metadata,
    # Apart from `interactions`, so that those can be partitioned by time: idempotency needs a global key.
    Column("event_id", Text, primary_key=True),
    instant("received_at", nullable=False, server_default=NOW),
)

interactions = Table(
    "interactions",
    metadata,
    Column("seq", BigInteger, Identity(), primary_key=True),
    Column("event_id", Text, nullable=False),
    # Rows of `users` and `items`, without a foreign key: docs/decisions/0016, 0022.
    Column("user_row", Integer, nullable=False),
    Column("item_row", Integer, nullable=False),
    # A kind of API.md, or `unlike`: a like taken back leaves the item seen and neither liked nor disliked.
    Column("kind", Text, nullable=False),
    Column("value", Float),
    instant("timestamp", nullable=False),
    instant("received_at", nullable=False, server_default=NOW),
    Column("session_id", Text),
    Column("request_id", Text),
    Column("xid", Xid8, nullable=False, server_default=CURRENT_XID),
    # Those are in `on_screen`: whatever reads what people did need not think of leaving them out.
    CheckConstraint("kind <> 'impression'", name="done"),
    # What a user did, and did with an item on a day: likes and live signals follow without reading the rest.
    Index("ix_interactions_past", "user_row", "item_row", "timestamp"),
    Index("ix_interactions_timestamp", "timestamp"),
    Index("ix_interactions_xid", "xid"),
    # For an item's visitors to be read again when one of them is erased: 15 ms instead of 300 ms at a million rows, and
    # it costs an insert 4 to 8 % (docs/decisions/0014).
    Index("ix_interactions_item_row", "item_row"),
)

retractions = Table(
    "retractions",
    metadata,
    # Interactions of users who were erased, for as long as the live signals need to take them out again: an hour.
    # The user's row is a number that stands for nobody any more.
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("user_row", Integer, nullable=False),
    Column("item_row", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("value", Float),
    instant("timestamp", nullable=False),
    instant("received_at", nullable=False),
    # The transaction that stored the interaction, and the one that erased it.
    Column("stored_xid", Xid8, nullable=False),
    Column("xid", Xid8, nullable=False, server_default=CURRENT_XID),
    instant("retracted_at", nullable=False, server_default=NOW),
    Index("ix_retractions_xid", "xid"),
)

live_checkpoint = Table(
    "live_checkpoint",
    metadata,
    # One row: up to which transaction `live_chunks` count, and by which definition.
    Column("only", Boolean, CheckConstraint("only", name="single"), primary_key=True, server_default=text("true")),
    Column("fingerprint", Text, nullable=False),
    Column("watermark", Xid8, nullable=False),
    # Retractions below are pruned: who has not read that far starts again from the checkpoint.
    Column("retractions_from", Xid8, nullable=False, server_default=text("'0'")),
    instant("stored_at", nullable=False, server_default=NOW),
)

live_chunks = Table(
    "live_chunks",
    metadata,
    # The live signals of some hundred items, or users, as arrays: see app/live/checkpoint.py.
    Column("part", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

on_screen = Table(
    "on_screen",
    metadata,
    # Events of the kind `impression`. Numbered with the interactions, so that a user's list goes through both.
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", Text, nullable=False),
    Column("user_row", Integer, nullable=False),
    Column("item_row", Integer, nullable=False),
    instant("timestamp", nullable=False),
    instant("received_at", nullable=False, server_default=NOW),
    Column("session_id", Text),
    # Of the page that the item was on: `impressions.request_id`.
    Column("request_id", Text),
    Index("ix_on_screen_user_row_timestamp", "user_row", "timestamp"),
    Index("ix_on_screen_timestamp", "timestamp"),
)

likes = Table(
    "likes",
    metadata,
    # Without a foreign key, as in `interactions`.
    Column("user_row", Integer, primary_key=True, autoincrement=False),
    Column("item_row", Integer, primary_key=True, autoincrement=False),
    instant("liked_at", nullable=False),
)

tombstones = Table(
    "tombstones",
    metadata,
    # sha256 of an erased user's id: what arrives late for it is dropped, not stored again.
    Column("user_hash", LargeBinary, primary_key=True),
    instant("erased_at", nullable=False, server_default=NOW),
    # When the keys that name the user were taken out of Redis; null: not yet, for Redis was away; infinity: once more
    # since, with what was written late.
    instant("forgotten_at"),
)

retention_floors = Table(
    "retention_floors",
    metadata,
    # By kind of event (`events`, `on_screen`): what is older is not taken in any more, for it may have been pruned, its
    # id too. Never goes back.
    Column("what", Text, primary_key=True),
    instant("kept_from", nullable=False),
    # Up to where the pruning came.
    instant("pruned_to"),
)

live_pruned = Table(
    "live_pruned",
    metadata,
    # What pruned events had added to the live counters, by some hundred items: see app/live/pruned.py.
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

impressions = Table(
    "impressions",
    metadata,
    Column("request_id", Text, primary_key=True),
    instant("shown_at", nullable=False),
    Column("user_id", Text, nullable=False),
    Column("surface", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("recommender", Text, nullable=False),
    Column("release", Text),
    Column("variants", JSONB, nullable=False, server_default=text("'{}'")),
    Column("first_position", Integer, nullable=False),
    Column("item_rows", ARRAY(Integer), nullable=False),
    Column("sources", ARRAY(Text), nullable=False),
    Column("scores", ARRAY(REAL), nullable=False),
    Column("promoted", ARRAY(Boolean), nullable=False),
    # Both null but where the slate's order was drawn: docs/decisions/0011. A pinned item has no propensity.
    Column("propensities", ARRAY(REAL)),
    Column("exploration", JSONB),
    Index("ix_impressions_user_id_shown_at", "user_id", "shown_at"),
    Index("ix_impressions_shown_at", "shown_at"),
)

blocks = Table(
    "blocks",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("item_row", Integer, ForeignKey("items.row"), nullable=False),
    # Scope: neither set means everywhere.
    Column("user_id", Text),
    Column("category", Text),
    Column("reason", Text, nullable=False, server_default=text("''")),
    instant("starts_at"),
    instant("ends_at"),
    instant("created_at", nullable=False, server_default=NOW),
    Index(
        "uq_blocks_scope",
        "item_row",
        text("coalesce(user_id, '')"),
        text("coalesce(category, '')"),
        unique=True,
    ),
)

promotions = Table(
    "promotions",
    metadata,
    Column("item_row", Integer, ForeignKey("items.row"), primary_key=True, autoincrement=False),
    Column("position", SmallInteger),
    Column("boost", REAL),
    Column("categories", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    instant("starts_at"),
    instant("ends_at"),
    Column("max_impressions", BigInteger),
    Column("impressions", BigInteger, nullable=False, server_default=text("0")),
    instant("created_at", nullable=False, server_default=NOW),
    CheckConstraint("(position is null) <> (boost is null)", name="position_or_boost"),
)

experiments = Table(
    "experiments",
    metadata,
    # One row for each time that an experiment was run; starting a stopped one makes the next, with a seed of its own.
    Column("key", Text, primary_key=True),
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("seed", Text, nullable=False),
    # As it was posted: see app/experiments/definitions.py. `forced` names users.
    Column("definition", JSONB, nullable=False),
    # What everybody got when a holdout began, and its control group gets until it ends; null before.
    Column("defaults", JSONB),
    Column("status", Text, nullable=False, server_default=text("'draft'")),
    Column("coverage", Float, nullable=False),
    instant("created_at", nullable=False, server_default=NOW),
    instant("started_at"),
    instant("stopped_at"),
    CheckConstraint("status in ('draft', 'running', 'stopped')", name="status"),
)

exposures = Table(
    "exposures",
    metadata,
    # The first time that a variant served a user. A user in two variants has two rows, and is left out of results.
    Column("experiment", Text, primary_key=True),
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("user_id", Text, primary_key=True),
    Column("variant", Text, primary_key=True),
    instant("exposed_at", nullable=False),
    Column("route", Text, nullable=False),
    Column("surface", Text, nullable=False),
    Column("release", Text),
    Column("request_id", Text, nullable=False),
    Column("worker", Text, nullable=False),
    # Of `forced`, `bot`, `explored`, `fallback`; empty: clean.
    Column("marks", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Index("ix_exposures_user_id", "user_id"),
)

exposure_losses = Table(
    "exposure_losses",
    metadata,
    # Exposures that happened and could not be written down.
    Column("experiment", Text, primary_key=True),
    Column("run", Integer, primary_key=True, autoincrement=False),
    Column("variant", Text, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("lost", BigInteger, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    instant("at", nullable=False, server_default=NOW),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", JSONB),
    Column("after", JSONB),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("name", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("key_hash", LargeBinary, nullable=False, unique=True),
    instant("created_at", nullable=False, server_default=NOW),
    instant("revoked_at"),
    # Set when another key took its place: docs/decisions/0014.
    instant("expires_at"),
)

releases = Table(
    "releases",
    metadata,
    Column("release_id", Text, primary_key=True),
    instant("created_at", nullable=False, server_default=NOW),
    instant("activated_at"),
    Column("manifest", JSONB, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'queued'")),
    Column("progress", REAL, nullable=False, server_default=text("0")),
    Column("step", Text, nullable=False, server_default=text("''")),
    Column("parameters", JSONB, nullable=False, server_default=text("'{}'")),
    Column("result", JSONB),
    Column("error", Text),
    instant("created_at", nullable=False, server_default=NOW),
    instant("started_at"),
    instant("finished_at"),
    CheckConstraint("status in ('queued', 'running', 'succeeded', 'failed')", name="status"),
)

imports = Table(
    "imports",
    metadata,
    # How far the import of a file came, by the file's content: a second run goes on there, or has nothing to do.
    Column("source", Text, primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("rows_done", BigInteger, nullable=False, server_default=text("0")),
    Column("rows_bad", BigInteger, nullable=False, server_default=text("0")),
    # What became of the rows (stored, duplicates, …), and the bad ones by reason.
    Column("counts", JSONB, nullable=False, server_default=text("'{}'")),
    Column("bad_by_reason", JSONB, nullable=False, server_default=text("'{}'")),
    # What is added to every time in the file; decided once, so that a resumed import adds the same.
    Column("shift_seconds", Float),
    instant("finished_at"),
    instant("updated_at", nullable=False, server_default=NOW),
)
