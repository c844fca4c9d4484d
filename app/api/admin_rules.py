"""Blocks and promotions: in force on the next request of every worker."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import select

from app.api.dependencies import ResourcesDep, require
from app.api.ids import ItemId, UserId
from app.catalog import rules
from app.catalog.rules import Window
from app.errors import Invalid
from app.storage import tables
from app.storage.keys import ApiKey

router = APIRouter(prefix="/admin", tags=["administration"])

Admin = Annotated[ApiKey, Depends(require("admin"))]
Category = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]


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
    scope: Scope | None = None
    starts_at: AwareDatetime | None = Field(default=None, description="in force from here (inclusive)")
    ends_at: AwareDatetime | None = Field(default=None, description="until here (exclusive)")


class PromotionBody(Strict):
    """A promotion: pinned to a position, or boosted by a factor. A block beats it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"position": 1, "categories": ["Drama"]}, {"boost": 1.5}]}
    )

    position: int | None = Field(default=None, ge=1, le=1000, description="from 1")
    boost: float | None = Field(
        default=None, gt=0, le=1000, allow_inf_nan=False, description="multiplies the lead over the last candidate"
    )
    categories: list[Category] = Field(
        default=[], max_length=100, description="only in answers that asked for one of these; empty: in all"
    )
    starts_at: AwareDatetime | None = Field(default=None, description="in force from here (inclusive)")
    ends_at: AwareDatetime | None = Field(default=None, description="until here (exclusive)")
    max_impressions: int | None = Field(
        default=None, ge=1, le=2**62, description="ends after so many; slates in flight may exceed it a little"
    )


class Done(BaseModel):
    """The change is committed, and in force on the next request of every worker."""

    item_id: str
    removed: int = Field(default=0, description="rules that were lifted")


class RuleList(BaseModel):
    """Every rule that is stored, those of the past included."""

    items: list[dict[str, Any]]
    next_cursor: str | None = None


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


@router.get("/rules", summary="Every block and promotion", dependencies=[Depends(require("admin"))])
def list_rules(resources: ResourcesDep) -> RuleList:
    blocks, promotions, items = tables.blocks, tables.promotions, tables.items
    with resources.engine.connect() as db:
        found = [
            {"rule": rule} | {name: value for name, value in row._mapping.items() if name not in ("id", "item_row")}
            for rule, table in (("block", blocks), ("promotion", promotions))
            for row in db.execute(
                select(items.c.item_id, table).join(items, items.c.row == table.c.item_row).order_by(table.c.created_at)
            )
        ]
    return RuleList(items=found)
