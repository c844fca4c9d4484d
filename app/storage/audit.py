"""Who changed what, when, from what to what."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert

from app.storage import tables


def record(
    db: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Adds one line to the audit log, in the transaction of the change itself.

    actor: name of the API key; action: `block.put`; subject: `item:i42`; before, after: JSON-ready states.
    """
    db.execute(insert(tables.audit_log).values(actor=actor, action=action, subject=subject, before=before, after=after))
