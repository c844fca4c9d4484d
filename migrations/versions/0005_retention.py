"""What is kept for how long: floors, sums of pruned events, keys that expire, erasures that Redis has not heard of"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retention_floors",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("kept_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pruned_to", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_retention_floors")),
    )
    op.create_table(
        "live_pruned",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_live_pruned")),
    )
    op.execute("ALTER TABLE live_pruned ALTER COLUMN data SET STORAGE EXTERNAL")
    op.create_index("ix_on_screen_timestamp", "on_screen", ["timestamp"])
    op.create_index("ix_interactions_item_row", "interactions", ["item_row"])
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tombstones", sa.Column("forgotten_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("tombstones", "forgotten_at")
    op.drop_column("api_keys", "expires_at")
    op.drop_index("ix_interactions_item_row", "interactions")
    op.drop_index("ix_on_screen_timestamp", "on_screen")
    op.drop_table("live_pruned")
    op.drop_table("retention_floors")
