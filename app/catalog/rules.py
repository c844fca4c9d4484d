"""Editorial rules: blocks and promotions, as rows in Postgres and as the snapshot that serving reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from app.catalog import versions
from app.catalog.rows import find_items
from app.errors import Invalid, NotFound
from app.storage import audit, tables

Rows = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Window:
    """When a rule is in force: from `starts_at` (inclusive) to `ends_at` (exclusive); None is unbounded."""

    starts_at: datetime | None = None
    ends_at: datetime | None = None

    def contains(self, at: float) -> bool:
        """at: unix seconds."""
        return (self.starts_at is None or self.starts_at.timestamp() <= at) and (
            self.ends_at is None or at < self.ends_at.timestamp()
        )


@dataclass(frozen=True, slots=True)
class Block:
    """An item that must not be shown: to nobody, to one user, or where one category was asked for."""

    item_row: int
    user_id: str | None
    category: str | None
    window: Window


@dataclass(frozen=True, slots=True)
class Promotion:
    """An item pinned to `position` (from 1), or whose score is multiplied by `boost`.

    categories: only in answers that were asked for one of these; empty for all answers.
    """

    item_row: int
    position: int | None
    boost: float | None
    categories: tuple[str, ...]
    window: Window
    max_impressions: int | None
    impressions: int

    def applies(self, at: float, asked: Iterable[str]) -> bool:
        """Whether the promotion is in force at this time for this request's categories."""
        return (
            self.window.contains(at)
            and (not self.categories or bool(set(self.categories) & set(asked)))
            and not self.is_capped
        )

    @property
    def is_capped(self) -> bool:
        """Whether it was shown as often as it may be."""
        return self.max_impressions is not None and self.impressions >= self.max_impressions


@dataclass(frozen=True, slots=True)
class RulesSnapshot:
    """Every rule that is or will be in force, indexed for one look per request."""

    version: str
    blocked_always: Rows
    blocked_by_user: Mapping[str, tuple[Block, ...]]
    blocked_by_category: Mapping[str, tuple[Block, ...]]
    blocked_at_times: tuple[Block, ...]
    promotions: tuple[Promotion, ...]

    def blocked(self, *, user_id: str, categories: Iterable[str], at: float) -> Rows:
        """int32[k]: rows that this request must not show, blocked by a window or scope or always."""
        scoped = [
            *self.blocked_at_times,
            *self.blocked_by_user.get(user_id, ()),
            *(block for category in categories for block in self.blocked_by_category.get(category, ())),
        ]
        if not scoped:
            return self.blocked_always
        rows = [block.item_row for block in scoped if block.window.contains(at)]
        return np.concatenate([self.blocked_always, np.array(rows, np.int32)])

    def promoted(self, *, categories: Iterable[str], at: float) -> list[Promotion]:
        """Promotions in force for this request, pinned ones in order of position."""
        asked = tuple(categories)
        return [promotion for promotion in self.promotions if promotion.applies(at, asked)]


def load(db: Connection) -> RulesSnapshot:
    """The rules as committed, with the version they belong to."""
    version = versions.read(db)["rules"]
    blocks = [_block(row) for row in db.execute(select(tables.blocks).where(_not_over(tables.blocks)))]
    promotions = [_promotion(row) for row in db.execute(select(tables.promotions).where(_not_over(tables.promotions)))]
    anywhere = [block for block in blocks if block.user_id is None and block.category is None]
    return RulesSnapshot(
        version=version,
        blocked_always=np.array([block.item_row for block in anywhere if block.window == Window()], np.int32),
        blocked_by_user=_grouped(block for block in blocks if block.user_id is not None),
        blocked_by_category=_grouped(block for block in blocks if block.category is not None),
        blocked_at_times=tuple(block for block in anywhere if block.window != Window()),
        promotions=tuple(sorted(promotions, key=lambda promotion: (promotion.position or 0, promotion.item_row))),
    )


def put_block(
    db: Connection,
    *,
    actor: str,
    item_id: str,
    reason: str,
    window: Window,
    user_id: str | None = None,
    category: str | None = None,
) -> None:
    """Blocks the item in this scope, replacing an earlier block of the same scope.

    Raises NotFound for an unknown item and Invalid for a window that ends before it starts.
    """
    row = _existing_item(db, item_id)
    _check_window(window)
    replaced = delete(tables.blocks).where(*_scope(row, user_id, category)).returning(tables.blocks)
    old = db.execute(replaced).one_or_none()
    state = {"reason": reason, "user_id": user_id, "category": category}
    db.execute(insert(tables.blocks).values(item_row=row, **state, **asdict(window)))
    before, after = _stored_block(old) if old else None, state | _times(window)
    audit.record(db, actor=actor, action="block.put", subject=f"item:{item_id}", before=before, after=after)
    versions.bump(db, "rules")


def delete_blocks(db: Connection, *, actor: str, item_id: str) -> int:
    """Lifts every block on the item, whatever its scope; how many. Raises NotFound where there is none."""
    row = _existing_item(db, item_id)
    lifted = db.execute(delete(tables.blocks).where(tables.blocks.c.item_row == row).returning(tables.blocks)).all()
    if not lifted:
        raise NotFound(f"item {item_id!r} is not blocked")
    for block in lifted:
        audit.record(db, actor=actor, action="block.delete", subject=f"item:{item_id}", before=_stored_block(block))
    versions.bump(db, "rules")
    return len(lifted)


def put_promotion(
    db: Connection,
    *,
    actor: str,
    item_id: str,
    position: int | None,
    boost: float | None,
    categories: list[str],
    window: Window,
    max_impressions: int | None,
) -> None:
    """Promotes the item, replacing its earlier promotion; its count of impressions starts again.

    Raises NotFound for an unknown item, Invalid unless exactly one of position and boost is given.
    """
    row = _existing_item(db, item_id)
    _check_window(window)
    if (position is None) == (boost is None):
        raise Invalid.field(("body",), "give either position or boost, and not both")
    state = {"position": position, "boost": boost, "categories": categories, "max_impressions": max_impressions}
    before = _stored_promotion(db, row)
    values = state | asdict(window) | {"impressions": 0}
    statement = upsert(tables.promotions).values(item_row=row, **values)
    db.execute(statement.on_conflict_do_update(index_elements=["item_row"], set_=values))
    after = state | _times(window)
    audit.record(db, actor=actor, action="promotion.put", subject=f"item:{item_id}", before=before, after=after)
    versions.bump(db, "rules")


def delete_promotion(db: Connection, *, actor: str, item_id: str) -> None:
    """Ends the item's promotion. Raises NotFound where there is none."""
    row = _existing_item(db, item_id)
    before = _stored_promotion(db, row)
    if before is None:
        raise NotFound(f"item {item_id!r} is not promoted")
    db.execute(delete(tables.promotions).where(tables.promotions.c.item_row == row))
    audit.record(db, actor=actor, action="promotion.delete", subject=f"item:{item_id}", before=before)
    versions.bump(db, "rules")


def count_impressions(db: Connection, shown: Mapping[int, int]) -> None:
    """Adds what was shown of capped promotions (row → times); a cap that is reached ends it everywhere."""
    table, ended = tables.promotions, False
    for row, times in sorted(shown.items()):
        statement = (
            update(table)
            .where(table.c.item_row == row, table.c.max_impressions.is_not(None))
            .values(impressions=table.c.impressions + times)
            .returning(table.c.impressions >= table.c.max_impressions)
        )
        ended = bool(db.execute(statement).scalar()) or ended
    if ended:
        versions.bump(db, "rules")


def _existing_item(db: Connection, item_id: str) -> int:
    row = find_items(db, [item_id]).get(item_id)
    if row is None:
        raise NotFound(f"item {item_id!r} does not exist")
    return row


def _check_window(window: Window) -> None:
    if window.starts_at and window.ends_at and window.ends_at <= window.starts_at:
        raise Invalid.field(("body", "ends_at"), "must be later than starts_at")


def _stored_block(row: Any) -> dict[str, Any]:
    window = Window(row.starts_at, row.ends_at)
    return {"reason": row.reason, "user_id": row.user_id, "category": row.category} | _times(window)


def _stored_promotion(db: Connection, row: int) -> dict[str, Any] | None:
    found = db.execute(select(tables.promotions).where(tables.promotions.c.item_row == row)).one_or_none()
    if found is None:
        return None
    promotion = _promotion(found)
    return {
        "position": promotion.position,
        "boost": promotion.boost,
        "categories": list(promotion.categories),
        "max_impressions": promotion.max_impressions,
    } | _times(promotion.window)


def _times(window: Window) -> dict[str, str | None]:
    return {
        "starts_at": window.starts_at.isoformat() if window.starts_at else None,
        "ends_at": window.ends_at.isoformat() if window.ends_at else None,
    }


def _scope(row: int, user_id: str | None, category: str | None) -> list[ColumnElement[bool]]:
    table = tables.blocks
    return [
        table.c.item_row == row,
        table.c.user_id.is_not_distinct_from(user_id),
        table.c.category.is_not_distinct_from(category),
    ]


def _not_over(table: Any) -> ColumnElement[bool]:
    return func.coalesce(table.c.ends_at > func.now(), True)


def _grouped(blocks: Iterable[Block]) -> dict[str, tuple[Block, ...]]:
    groups: dict[str, list[Block]] = {}
    for block in blocks:
        groups.setdefault(block.user_id or block.category or "", []).append(block)
    return {key: tuple(group) for key, group in groups.items()}


def _block(row: Any) -> Block:
    return Block(row.item_row, row.user_id, row.category, Window(row.starts_at, row.ends_at))


def _promotion(row: Any) -> Promotion:
    return Promotion(
        item_row=row.item_row,
        position=row.position,
        boost=row.boost,
        categories=tuple(row.categories),
        window=Window(row.starts_at, row.ends_at),
        max_impressions=row.max_impressions,
        impressions=row.impressions,
    )
