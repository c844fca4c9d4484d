"""A database that was restored begins a new life: nothing that Redis, or a worker, remembers of another is believed.

Versions get new epochs, so views, rules and keys of the other life have other names. A copy of the cluster's files goes
on with the cluster's transaction numbers; a dump that was read into another cluster may hold numbers that lie in that
one's future, and those are given anew (docs/decisions/0010, 0014).
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from app.storage import audit

_EPOCHS = "UPDATE versions SET epoch = gen_random_uuid()"
_JOBS = """
    UPDATE jobs SET status = 'failed', error = 'the database was restored from a backup', finished_at = now()
    WHERE status IN ('queued', 'running')
"""
_FROM_ANOTHER_CLUSTER = """
    WITH horizon AS MATERIALIZED (SELECT pg_snapshot_xmax(pg_current_snapshot()) AS xid)
    SELECT EXISTS (SELECT FROM interactions, horizon WHERE interactions.xid >= horizon.xid)
        OR EXISTS (SELECT FROM items, horizon WHERE changed_xid >= horizon.xid)
        OR EXISTS (SELECT FROM retractions, horizon WHERE greatest(retractions.xid, stored_xid) >= horizon.xid)
        OR EXISTS (SELECT FROM live_checkpoint, horizon WHERE watermark >= horizon.xid)
"""
# Afterwards the live signals are counted anew, from the events and from `live_pruned`, which holds no numbers.
_GIVEN_ANEW = (
    "TRUNCATE retractions, live_checkpoint, live_chunks",
    "UPDATE interactions SET xid = DEFAULT WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())",
    "UPDATE items SET changed_xid = DEFAULT WHERE changed_xid >= pg_snapshot_xmax(pg_current_snapshot())",
)


def begin_new_life(db: Connection, *, actor: str) -> bool:
    """In the caller's transaction, while nothing serves; whether transaction numbers had to be given anew."""
    db.execute(text("SET LOCAL statement_timeout = 0"))
    db.execute(text(_EPOCHS))
    db.execute(text(_JOBS))
    is_from_another_cluster: bool = db.execute(text(_FROM_ANOTHER_CLUSTER)).scalar_one()
    if is_from_another_cluster:
        for statement in _GIVEN_ANEW:
            db.execute(text(statement))
    after = {"transactions_renumbered": is_from_another_cluster}
    audit.record(db, actor=actor, action="database.restored", subject="database", after=after)
    return is_from_another_cluster
