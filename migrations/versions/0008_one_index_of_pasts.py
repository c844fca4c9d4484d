"""One index finds what a user did with an item, and when; likes ask no more whether their user and item exist

Building the index holds writers up. Where `interactions` is large, build it beforehand, beside them:
CREATE INDEX CONCURRENTLY ix_interactions_past ON interactions (user_row, item_row, "timestamp").
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

REFERENCES = {"user_row": "users", "item_row": "items"}


def upgrade() -> None:
    op.create_index("ix_interactions_past", "interactions", ["user_row", "item_row", "timestamp"], if_not_exists=True)
    op.drop_index("ix_interactions_user_row_timestamp", "interactions")
    op.drop_index("ix_interactions_decisions", "interactions")
    # Why they are not needed, and what they cost: docs/decisions/0022.
    for column in REFERENCES:
        op.drop_constraint(op.f(f"fk_likes_{column}"), "likes", type_="foreignkey")


def downgrade() -> None:
    for column, other in REFERENCES.items():
        op.create_foreign_key(op.f(f"fk_likes_{column}"), "likes", other, [column], ["row"])
    op.create_index(
        "ix_interactions_decisions",
        "interactions",
        ["user_row", "item_row"],
        postgresql_where=sa.text("kind IN ('dislike', 'hide', 'like', 'unlike')"),
    )
    op.create_index("ix_interactions_user_row_timestamp", "interactions", ["user_row", "timestamp"])
    op.drop_index("ix_interactions_past", "interactions")
