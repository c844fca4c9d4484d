"""The first tables"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from app.storage.tables import Xid8

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash"),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("before", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("after", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_table(
        "database_identity",
        sa.Column("only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("database_id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_database_identity")),
    )
    op.create_table(
        "event_ids",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_event_ids")),
    )
    op.create_table(
        "imports",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("rows_done", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_bad", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column(
            "bad_by_reason",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("shift_seconds", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("source", "fingerprint", name=op.f("pk_imports")),
    )
    op.create_table(
        "impressions",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("shown_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("surface", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("recommender", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), nullable=True),
        sa.Column(
            "variants",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("first_position", sa.Integer(), nullable=False),
        sa.Column("item_rows", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("sources", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("scores", sa.ARRAY(sa.REAL()), nullable=False),
        sa.Column("propensities", sa.ARRAY(sa.REAL()), nullable=True),
        sa.Column("promoted", sa.ARRAY(sa.Boolean()), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_impressions")),
    )
    op.create_index("ix_impressions_shown_at", "impressions", ["shown_at"], unique=False)
    op.create_index("ix_impressions_user_id_shown_at", "impressions", ["user_id", "shown_at"], unique=False)
    op.create_table(
        "items",
        sa.Column("row", sa.Integer(), sa.Identity(always=False, start=0, minvalue=0), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("categories", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("tags", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("creator", sa.Text(), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("features", sa.ARRAY(sa.REAL()), nullable=True),
        sa.Column(
            "attributes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changed_xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_items")),
    )
    op.create_index("ix_items_changed_xid", "items", ["changed_xid"], unique=False)
    op.create_index("uq_items_item_id", "items", ["item_id"], unique=True)
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("progress", sa.REAL(), server_default=sa.text("0"), nullable=False),
        sa.Column("step", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column(
            "parameters",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status in ('queued', 'running', 'succeeded', 'failed')", name=op.f("ck_jobs_status")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
    )
    op.create_table(
        "releases",
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("activated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("release_id", name=op.f("pk_releases")),
    )
    op.create_table(
        "tombstones",
        sa.Column("user_hash", sa.LargeBinary(), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("user_hash", name=op.f("pk_tombstones")),
    )
    op.create_table(
        "users",
        sa.Column("row", sa.Integer(), sa.Identity(always=False, start=0, minvalue=0), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column(
            "attributes",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("preferred_categories", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("row", name=op.f("pk_users")),
    )
    op.create_index("uq_users_user_id", "users", ["user_id"], unique=True)
    op.create_table(
        "versions",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("epoch", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_versions")),
    )
    op.create_table(
        "blocks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("item_row", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("category", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["item_row"], ["items.row"], name=op.f("fk_blocks_item_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blocks")),
    )
    op.create_index(
        "uq_blocks_scope",
        "blocks",
        ["item_row", sa.literal_column("coalesce(user_id, '')"), sa.literal_column("coalesce(category, '')")],
        unique=True,
    )
    op.create_table(
        "interactions",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("user_row", sa.Integer(), nullable=False),
        sa.Column("item_row", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.ForeignKeyConstraint(["item_row"], ["items.row"], name=op.f("fk_interactions_item_row")),
        sa.ForeignKeyConstraint(["user_row"], ["users.row"], name=op.f("fk_interactions_user_row")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_interactions")),
    )
    op.create_index("ix_interactions_timestamp", "interactions", ["timestamp"], unique=False)
    op.create_index("ix_interactions_user_row_timestamp", "interactions", ["user_row", "timestamp"], unique=False)
    op.create_table(
        "likes",
        sa.Column("user_row", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("item_row", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("liked_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_row"], ["items.row"], name=op.f("fk_likes_item_row")),
        sa.ForeignKeyConstraint(["user_row"], ["users.row"], name=op.f("fk_likes_user_row")),
        sa.PrimaryKeyConstraint("user_row", "item_row", name=op.f("pk_likes")),
    )
    op.create_table(
        "promotions",
        sa.Column("item_row", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=True),
        sa.Column("boost", sa.REAL(), nullable=True),
        sa.Column("categories", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("max_impressions", sa.BigInteger(), nullable=True),
        sa.Column("impressions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(position is null) <> (boost is null)", name=op.f("ck_promotions_position_or_boost")),
        sa.ForeignKeyConstraint(["item_row"], ["items.row"], name=op.f("fk_promotions_item_row")),
        sa.PrimaryKeyConstraint("item_row", name=op.f("pk_promotions")),
    )
    op.execute("INSERT INTO database_identity DEFAULT VALUES")
    op.execute("INSERT INTO versions (name) VALUES ('rules'), ('items'), ('deletions'), ('keys'), ('cache')")


def downgrade() -> None:
    op.drop_table("promotions")
    op.drop_table("likes")
    op.drop_index("ix_interactions_user_row_timestamp", table_name="interactions")
    op.drop_index("ix_interactions_timestamp", table_name="interactions")
    op.drop_table("interactions")
    op.drop_index("uq_blocks_scope", table_name="blocks")
    op.drop_table("blocks")
    op.drop_table("versions")
    op.drop_index("uq_users_user_id", table_name="users")
    op.drop_table("users")
    op.drop_table("tombstones")
    op.drop_table("releases")
    op.drop_table("jobs")
    op.drop_index("uq_items_item_id", table_name="items")
    op.drop_index("ix_items_changed_xid", table_name="items")
    op.drop_table("items")
    op.drop_index("ix_impressions_user_id_shown_at", table_name="impressions")
    op.drop_index("ix_impressions_shown_at", table_name="impressions")
    op.drop_table("impressions")
    op.drop_table("imports")
    op.drop_table("event_ids")
    op.drop_table("database_identity")
    op.drop_table("audit_log")
    op.drop_table("api_keys")
