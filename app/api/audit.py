"""Who changed what, when, from what to what."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel
from sqlalchemy import select

from app.api.cursors import decode_cursor, encode_cursor
from app.api.dependencies import ResourcesDep, require
from app.storage.tables import audit_log

router = APIRouter(prefix="/admin", tags=["administration"], dependencies=[Depends(require("admin"))])


class AuditEntry(BaseModel):
    """One change."""

    at: datetime
    actor: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPage(BaseModel):
    """Changes, newest first."""

    items: list[AuditEntry]
    next_cursor: str | None


@router.get("/audit", summary="The audit log, newest first")
def list_audit(
    resources: ResourcesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=256, description="`next_cursor` of the page before")] = None,
) -> AuditPage:
    statement = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        statement = statement.where(audit_log.c.id < decode_cursor(cursor, int))
    with resources.engine.connect() as db:
        rows = db.execute(statement).all()
    entries = [AuditEntry.model_validate(row, from_attributes=True) for row in rows[:limit]]
    return AuditPage(items=entries, next_cursor=encode_cursor(rows[limit - 1].id) if len(rows) > limit else None)
