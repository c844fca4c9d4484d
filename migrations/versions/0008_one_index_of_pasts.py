"""One index finds what a user did with an item, and when; likes ask no more whether their user and item exist

Building the index holds up those who store events. Where `interactions` is large, build it beforehand, beside them:
CREATE INDEX CONCURRENTLY ix_interactions_past ON interactions (user_row, item_row, "timestamp").
What such a build leaves behind that was cut short is no index; it is thrown away here, and built anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

REFERENCES = {"user_row": "users", "item_row": "items"}
NO_EVENTS_MEANWHILE = "select pg_advisory_xact_lock(386574)"
"""The lock that whoever stores or erases events takes first (`app.feedback.dirty_marks.ERASURE_LOCK`). They hold
`users` and then want `interactions`, which is locked here before `users` are."""
CUT_SHORT = """
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('ix_interactions_past') AND NOT indisvalid) THEN
        DROP INDEX ix_interactions_past;
    END IF;
END $$
"""


def upgrade() -> None:
    op.execute(NO_EVENTS_MEANWHILE)
    op.execute(CUT_SHORT)
    op.create_index("ix_interactions_past", "interactions", ["user_row", "item_row", "timestamp"], if_not_exists=True)
    op.drop_index("ix_interactions_user_row_timestamp", "interactions")
    op.drop_index("ix_interactions_decisions", "interactions")
    # Why they are not needed, and what they cost: docs/decisions/0022.
    for column in REFERENCES:
        op.drop_constraint(op.f(f"fk_likes_{column}"), "likes", type_="foreignkey")


def downgrade() -> None:
    op.execute(NO_EVENTS_MEANWHILE)
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
