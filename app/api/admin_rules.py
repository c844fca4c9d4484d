"""Blocks and promotions: in force on the next request of every worker."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Column, Connection, Table, select

from app.api.bodies import example, json_answer
from app.api.cursors import Cursor, PageLimit, decode_cursor
from app.api.dependencies import ResourcesDep, require
from app.api.ids import ItemId, UserId
from app.api.instants import Instant
from app.api.lists import listing
from app.catalog import rules
from app.catalog.rules import Window
from app.errors import Invalid
from app.storage import tables
from app.storage.keys import ApiKey

router = APIRouter(prefix="/admin", tags=["administration"])

Admin = Annotated[ApiKey, Depends(require("admin"))]
Category = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]

A_BLOCK = {
    "rule": "block", "item_id": "i42", "reason": "withdrawn by the publisher", "user_id": None, "category": None,
    "starts_at": None, "ends_at": None, "created_at": "2026-03-14T09:30:00Z",
}  # fmt: skip
A_PROMOTION = {
    "rule": "promotion", "item_id": "i7", "position": 1, "boost": None, "categories": ["Drama"], "starts_at": None,
    "ends_at": None, "max_impressions": 1000, "impressions": 12, "created_at": "2026-03-14T09:30:00Z",
}  # fmt: skip
TABLES: tuple[tuple[str, Table, Column[int]], ...] = (
    ("block", tables.blocks, tables.blocks.c.id),
    ("promotion", tables.promotions, tables.promotions.c.item_row),
)
"""The kinds of rule in the order of their list, with their tables and the columns that order each."""


class Strict(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Scope(Strict):
    """Where a block holds: give one of the two."""

    user_id: UserId | None = Field(default=None, description="only for this user")
    category: Category | None = Field(default=None, description="only where this category was asked for")


class BlockBody(Strict):
    """A block. Without a scope it holds everywhere; without times, from now on for good."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"reason": "withdrawn by the publisher", "scope": None}]},
    )

    reason: str = Field(default="", max_length=1000, pattern=r"^[^\x00]*$", description="for the audit log")
    scope: Scope | None = Field(default=None, description="where it holds; null: everywhere")
    starts_at: Instant | None = Field(default=None, description="in force from here (inclusive)")
    ends_at: Instant | None = Field(default=None, description="until here (exclusive)")


class PromotionBody(Strict):
    """A promotion: pinned to a position, or boosted by a factor. A block beats it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"position": 1, "categories": ["Drama"]}, {"boost": 1.5}]}
    )

    position: int | None = Field(default=None, ge=1, le=1000, description="from 1")
    boost: float | None = Field(
        default=None, ge=0.001, le=1000, allow_inf_nan=False, description="multiplies the lead over the last candidate"
    )
    categories: list[Category] = Field(
        default=[], max_length=100, description="only in answers that asked for one of these; empty: in all"
    )
    starts_at: Instant | None = Field(default=None, description="in force from here (inclusive)")
    ends_at: Instant | None = Field(default=None, description="until here (exclusive)")
    max_impressions: int | None = Field(
        default=None, ge=1, le=2**62, description="ends after so many; slates in flight may exceed it a little"
    )


class Done(BaseModel):
    """The change is committed, and in force on the next request of every worker."""

    model_config = example(item_id="i42", removed=0)

    item_id: str = Field(description="as asked for")
    removed: int = Field(default=0, description="rules that were lifted")


class RuleList(BaseModel):
    """Every rule that is stored, those of the past included."""

    model_config = example(items=[A_BLOCK, A_PROMOTION], next_cursor=None)

    items: list[dict[str, Any]] = Field(description="`rule` (block or promotion), `item_id`, and what was put")
    next_cursor: str | None = Field(description="null where there is no more")


@router.put("/blocks/{item_id}", summary="Never show this item")
def put_block(resources: ResourcesDep, admin: Admin, item_id: ItemId, body: BlockBody) -> Done:
    """Replaces an earlier block of the same scope."""
    scope = body.scope or Scope()
    if body.scope is not None and (scope.user_id is None) == (scope.category is None):
        raise Invalid.field(("body", "scope"), "give either user_id or category; leave scope out for everywhere")
    with resources.engine.begin() as db:
        rules.put_block(
            db,
            actor=admin.name,
            item_id=item_id,
            reason=body.reason,
            window=Window(body.starts_at, body.ends_at),
            user_id=scope.user_id,
            category=scope.category,
        )
    resources.publish_versions()
    return Done(item_id=item_id)


@router.delete("/blocks/{item_id}", summary="Lift every block on this item")
def delete_block(resources: ResourcesDep, admin: Admin, item_id: ItemId) -> Done:
    with resources.engine.begin() as db:
        removed = rules.delete_blocks(db, actor=admin.name, item_id=item_id)
    resources.publish_versions()
    return Done(item_id=item_id, removed=removed)


@router.put("/promotions/{item_id}", summary="Pin or boost this item")
def put_promotion(resources: ResourcesDep, admin: Admin, item_id: ItemId, body: PromotionBody) -> Done:
    """Replaces the item's earlier promotion; its impressions are counted from zero again."""
    with resources.engine.begin() as db:
        rules.put_promotion(
            db,
            actor=admin.name,
            item_id=item_id,
            position=body.position,
            boost=body.boost,
            categories=body.categories,
            window=Window(body.starts_at, body.ends_at),
            max_impressions=body.max_impressions,
        )
    resources.publish_versions()
    return Done(item_id=item_id)


@router.delete("/promotions/{item_id}", summary="End this item's promotion")
def delete_promotion(resources: ResourcesDep, admin: Admin, item_id: ItemId) -> Done:
    with resources.engine.begin() as db:
        rules.delete_promotion(db, actor=admin.name, item_id=item_id)
    resources.publish_versions()
    return Done(item_id=item_id, removed=1)


@router.get(
    "/rules", response_model=RuleList, summary="Every block and promotion", dependencies=[Depends(require("admin"))]
)
def list_rules(resources: ResourcesDep, limit: PageLimit = 100, cursor: Cursor = None) -> Response:
    """Blocks in the order of their making, then promotions."""
    kind, _, last = "block -1".partition(" ") if cursor is None else decode_cursor(cursor, str, "rules").partition(" ")
    found: list[dict[str, Any]] = []
    with resources.engine.connect() as db:
        for rule, table, key in TABLES:
            if rule >= kind:
                after = int(last) if rule == kind else -1
                found += _rules_after(db, rule, table, key, after=after, limit=limit + 1 - len(found))
    return json_answer(listing(found, limit, "key", "rules"))


def _rules_after(
    db: Connection, rule: str, table: Table, key: Column[int], *, after: int, limit: int
) -> list[dict[str, Any]]:
    statement = (
        select(tables.items.c.item_id, table)
        .join(tables.items, tables.items.c.row == table.c.item_row)
        .where(key > after)
        .order_by(key)
        .limit(limit)
    )
    hidden = ("id", "item_row")
    return [
        {"rule": rule, "key": f"{rule} {row._mapping[key]}"}
        | {name: value for name, value in row._mapping.items() if name not in hidden}
        for row in db.execute(statement)
    ]
