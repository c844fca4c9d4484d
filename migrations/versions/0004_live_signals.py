"""What the live signals are followed by, taken back by and stored in"""

import sqlalchemy as sa
from alembic import op

from app.storage.tables import Xid8

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_interactions_xid", "interactions", ["xid"])
    op.create_table(
        "retractions",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("user_row", sa.Integer(), nullable=False),
        sa.Column("item_row", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stored_xid", Xid8(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.Column("retracted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_retractions")),
    )
    op.create_index("ix_retractions_xid", "retractions", ["xid"])
    op.create_table(
        "live_checkpoint",
        sa.Column("only", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("watermark", Xid8(), nullable=False),
        sa.Column("retractions_from", Xid8(), server_default=sa.text("'0'"), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint('"only"', name=op.f("ck_live_checkpoint_single")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_live_checkpoint")),
    )
    op.create_table(
        "live_chunks",
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("part", "number", name=op.f("pk_live_chunks")),
    )
    # Written every few seconds: trying to compress floating-point numbers costs more than it saves.
    op.execute("ALTER TABLE live_chunks ALTER COLUMN data SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("live_chunks")
    op.drop_table("live_checkpoint")
    op.drop_table("retractions")
    op.drop_index("ix_interactions_xid", "interactions")
