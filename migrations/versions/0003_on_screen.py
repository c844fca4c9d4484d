"""What was on screen, apart from what people did"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "on_screen",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("user_row", sa.Integer(), nullable=False),
        sa.Column("item_row", sa.Integer(), nullable=False),
        sa.Column("timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["item_row"], ["items.row"], name=op.f("fk_on_screen_item_row")),
        sa.ForeignKeyConstraint(["user_row"], ["users.row"], name=op.f("fk_on_screen_user_row")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_on_screen")),
    )
    op.create_index("ix_on_screen_user_row_timestamp", "on_screen", ["user_row", "timestamp"])
    op.execute(
        "INSERT INTO on_screen (seq, event_id, user_row, item_row, timestamp, received_at, session_id, request_id)"
        " SELECT seq, event_id, user_row, item_row, timestamp, received_at, session_id, request_id"
        " FROM interactions WHERE kind = 'impression'"
    )
    op.execute("DELETE FROM interactions WHERE kind = 'impression'")
    op.create_check_constraint(op.f("ck_interactions_done"), "interactions", "kind <> 'impression'")


def downgrade() -> None:
    op.drop_constraint(op.f("ck_interactions_done"), "interactions")
    op.execute(
        "INSERT INTO interactions"
        " (seq, event_id, user_row, item_row, kind, timestamp, received_at, session_id, request_id)"
        " SELECT seq, event_id, user_row, item_row, 'impression', timestamp, received_at, session_id, request_id"
        " FROM on_screen"
    )
    op.drop_table("on_screen")
