"""Who changed what, when, from what to what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy import select

from app.api.bodies import example
from app.api.cursors import Cursor, PageLimit, decode_cursor, encode_cursor
from app.api.dependencies import ResourcesDep, require
from app.storage.tables import audit_log

router = APIRouter(prefix="/admin", tags=["administration"], dependencies=[Depends(require("admin"))])

ENTRY = {
    "at": "2026-11-22T09:30:00Z", "actor": "editor", "action": "block.put", "subject": "item:i42", "before": None,
    "after": {"reason": "withdrawn by the publisher", "user_id": None, "category": None},
}  # fmt: skip


class AuditEntry(BaseModel):
    """One change."""

    model_config = example(**ENTRY)

    at: datetime = Field(description="RFC 3339, UTC")
    actor: str = Field(description="the name of the key, `terminal` or `training`")
    action: str = Field(description="what was done")
    subject: str = Field(description="to what: its kind and id")
    before: dict[str, Any] | None = Field(description="as it was; null: it was not there")
    after: dict[str, Any] | None = Field(description="as it is; null: it is gone")


class AuditPage(BaseModel):
    """Changes, newest first."""

    model_config = example(items=[ENTRY], next_cursor=None)

    items: list[AuditEntry] = Field(description="at most `limit`")
    next_cursor: str | None = Field(description="null where there is no more")


@router.get("/audit", summary="The audit log, newest first")
def list_audit(resources: ResourcesDep, limit: PageLimit = 100, cursor: Cursor = None) -> AuditPage:
    """An erased user's name is not in it any more."""
    statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        statement = statement.where(audit_log.c.id < decode_cursor(cursor, int, "audit"))
    with resources.engine.connect() as db:
        rows = db.execute(statement).all()
    entries = [AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
    return AuditPage(
        items=entries, next_cursor=encode_cursor(rows[limit - 1].id, "audit") if len(rows) > limit else None
    )
