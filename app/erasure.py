"""A user forgotten everywhere, and all that is known of a user, to be given back first."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine

from app.catalog import versions
from app.catalog.rows import find_users
from app.catalog.users import COLUMNS, hash_of, unknown
from app.feedback.dirty_marks import ViewWriter
from app.storage import tables

# In this order, for rows refer to those below them.
ERASE = {
    "likes": "DELETE FROM likes WHERE user_row = %(row)s",
    "event_ids": """
        DELETE FROM event_ids USING (
            SELECT event_id FROM interactions WHERE user_row = %(row)s
            UNION ALL SELECT event_id FROM on_screen WHERE user_row = %(row)s
        ) AS past WHERE event_ids.event_id = past.event_id
    """,
    # The live signals have counted them: kept for an hour, under a row that is nobody's then, to be taken out again.
    "interactions": """
        WITH gone AS (DELETE FROM interactions WHERE user_row = %(row)s RETURNING *)
        INSERT INTO retractions (seq, user_row, item_row, kind, value, "timestamp", received_at, stored_xid)
        SELECT seq, user_row, item_row, kind, value, "timestamp", received_at, xid FROM gone
    """,
    "on_screen": "DELETE FROM on_screen WHERE user_row = %(row)s",
    "impressions": "DELETE FROM impressions WHERE user_id = %(user_id)s",
    "blocks": "DELETE FROM blocks WHERE user_id = %(user_id)s",
    # As jsonb writes it, a key and a string; the line stays, without the name.
    "audit_entries": """
        UPDATE audit_log SET subject = replace(subject, 'user:' || %(user_id)s, 'user:(erased)'),
            before = replace(before::text, named, anonymous)::jsonb,
            after = replace(after::text, named, anonymous)::jsonb
        FROM (SELECT '"user_id": ' || to_json(%(user_id)s::text) AS named, '"user_id": "(erased)"' AS anonymous) AS name
        WHERE subject = 'user:' || %(user_id)s OR strpos(before::text, named) > 0 OR strpos(after::text, named) > 0
    """,
    "users": "DELETE FROM users WHERE row = %(row)s",
}
BURY = """
    INSERT INTO tombstones (user_hash, erased_at) VALUES (%(hash)s, clock_timestamp())
    ON CONFLICT (user_hash) DO UPDATE SET erased_at = excluded.erased_at
"""


def erase_user(engine: Engine, views: ViewWriter, user_id: str) -> dict[str, int]:
    """Forgets the user in one transaction; how many rows of each kind were erased, all 0 for an unknown user.

    A tombstone (a hash of the id) stays: events of the user that are under way or sent again are acknowledged and
    dropped. Views in the cache are dropped too. The caller publishes the versions (rules, deletions) afterwards.
    Raises OutcomeUnknown where Postgres did not confirm; erasing again is harmless.
    """
    with engine.connect() as db, views.changing(db, [user_id], alone=True):
        # -1 is nobody's row: an unknown user may still have been shown things.
        row = find_users(db, [user_id]).get(user_id, -1)
        db.exec_driver_sql(BURY, {"hash": hash_of(user_id)})
        parameters = {"row": row, "user_id": user_id}
        erased = {what: db.exec_driver_sql(statement, parameters).rowcount for what, statement in ERASE.items()}
        versions.bump(db, "deletions")
        if erased["blocks"]:
            versions.bump(db, "rules")
    views.forget([user_id])
    return erased


EXPORT = {
    "likes": """
        SELECT item_id, liked_at FROM likes JOIN items ON items.row = item_row WHERE user_row = %(row)s
        ORDER BY liked_at, items.row
    """,
    "interactions": """
        SELECT event_id, item_id, past.kind, value, "timestamp", received_at, session_id, request_id
        FROM interactions AS past JOIN items ON items.row = item_row WHERE user_row = %(row)s ORDER BY seq
    """,
    "on_screen": """
        SELECT event_id, item_id, "timestamp", received_at, session_id, request_id
        FROM on_screen JOIN items ON items.row = item_row WHERE user_row = %(row)s ORDER BY seq
    """,
    "impressions": """
        SELECT request_id, shown_at, surface, route, recommender, release, variants, first_position, promoted, scores,
            propensities,
            jsonb_set(exploration, '{draw,candidates}', to_jsonb(array(
                SELECT item_id FROM jsonb_array_elements_text(exploration #> '{draw,candidates}')
                    WITH ORDINALITY AS candidate (row, position)
                JOIN items ON items.row = candidate.row::int ORDER BY position))) AS exploration,
            array(SELECT item_id FROM unnest(item_rows) WITH ORDINALITY AS shown (row, position)
                  JOIN items USING (row) ORDER BY position) AS item_ids
        FROM impressions WHERE user_id = %(user_id)s ORDER BY shown_at
    """,
    "blocks": """
        SELECT item_id, reason, starts_at, ends_at FROM blocks JOIN items ON items.row = item_row
        WHERE user_id = %(user_id)s ORDER BY blocks.id
    """,
}


def export_user(db: Connection, user_id: str) -> dict[str, Any]:
    """Everything stored about the user: `user` and a list for each of EXPORT. Raises NotFound for nobody."""
    row = find_users(db, [user_id]).get(user_id, -1)
    parameters = {"row": row, "user_id": user_id}
    exported: dict[str, Any] = {
        what: [dict(found) for found in db.exec_driver_sql(statement, parameters).mappings()]
        for what, statement in EXPORT.items()
    }
    if row < 0 and not any(exported.values()):
        raise unknown(user_id)
    return {"user": _user(db, user_id) if row >= 0 else None} | exported


def _user(db: Connection, user_id: str) -> dict[str, Any]:
    found = db.execute(tables.users.select().with_only_columns(*COLUMNS).where(tables.users.c.user_id == user_id))
    return dict(found.mappings().one())
