"""Events are stored without asking after their user and item once more, and likes find their past by an index"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("interactions", "on_screen")
REFERENCES = {"user_row": "users", "item_row": "items"}


def upgrade() -> None:
    # Why they are not needed, and what they cost: docs/decisions/0016.
    for table in TABLES:
        for column in REFERENCES:
            op.drop_constraint(op.f(f"fk_{table}_{column}"), table, type_="foreignkey")
    op.create_index(
        "ix_interactions_decisions",
        "interactions",
        ["user_row", "item_row"],
        postgresql_where=sa.text("kind IN ('dislike', 'hide', 'like', 'unlike')"),
    )


def downgrade() -> None:
    op.drop_index("ix_interactions_decisions", "interactions")
    for table in TABLES:
        for column, other in REFERENCES.items():
            op.create_foreign_key(op.f(f"fk_{table}_{column}"), table, other, [column], ["row"])
