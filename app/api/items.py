"""/items: what can be recommended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, TypeAdapter

from app.api.bodies import Attributes, Name, RawBody, Strict, documented, example, json_answer, many, parse
from app.api.cursors import Cursor, PageLimit, decode_cursor
from app.api.dependencies import ResourcesDep, require
from app.api.ids import ItemId
from app.api.instants import Instant
from app.api.lists import distinct, each_once, listing
from app.api.users import Upserted
from app.catalog import items

router = APIRouter(prefix="/items", tags=["items"])
READ = [Depends(require("read"))]
WRITE = [Depends(require("write"))]

LARGEST_REAL = 3.4028e38

Title = Annotated[str, StringConstraints(strict=True, max_length=1_000, pattern=r"^[^\x00]*$")]
Text = Annotated[str, StringConstraints(strict=True, max_length=100_000, pattern=r"^[^\x00]*$")]
Names = Annotated[list[Name], Field(max_length=100), AfterValidator(distinct)]
Real = Annotated[float, Field(strict=True, ge=-LARGEST_REAL, le=LARGEST_REAL, allow_inf_nan=False)]
Features = Annotated[list[Real], Field(max_length=4096)]

EXAMPLE = {
    "kind": "post", "title": "The long way home", "text": "On walking back from work.", "categories": ["Essay"],
    "tags": ["walking", "city"], "creator": "mira", "published_at": "2026-03-14T09:30:00Z",
    "features": [0.1, -0.4], "attributes": {"minutes": 7},
}  # fmt: skip
STORED = {"item_id": "i42"} | EXAMPLE | {"created_at": "2026-03-14T09:30:00Z", "updated_at": "2026-03-14T09:30:00Z"}


class Described(Strict):
    """The fields that can be null."""

    kind: Name | None = Field(default=None, description="what sort of thing it is", examples=["post"])
    title: Title | None = Field(default=None, description="at most 1,000 characters")
    text: Text | None = Field(default=None, description="at most 100,000 characters")
    creator: Name | None = Field(default=None, description="who made it")
    published_at: Instant | None = Field(default=None, description="RFC 3339 with a zone")
    features: Features | None = Field(
        default=None, description="at most 4,096 finite numbers, kept as float32; the same length for all items"
    )


class ItemBody(Described):
    """What an item is about; fields left out become empty."""

    categories: Names = Field(default=[], description="at most 100")
    tags: Names = Field(default=[], description="at most 100")
    attributes: Attributes = Field(default={}, description="free-form JSON, at most 16 KiB and 16 levels")

    def item(self, item_id: str) -> items.Item:
        return items.Item(item_id, **{name: getattr(self, name) for name in items.CONTENT})


class ItemWithId(ItemBody):
    """An item in an array."""

    item_id: ItemId


class ItemPatch(Described):
    """Fields given replace what is stored (null empties it); fields left out stay."""

    categories: Names | None = Field(default=None, description="at most 100; null: none")
    tags: Names | None = Field(default=None, description="at most 100; null: none")
    attributes: Attributes | None = Field(default=None, description="replaces all attributes; null: none")

    def changes(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return {name: items.NOTHING[name] if value is None else value for name, value in given.items()}


class ItemAnswer(BaseModel):
    """An item as stored."""

    model_config = example(**STORED)

    item_id: str = Field(description="the caller's id")
    kind: str | None = Field(description="what sort of thing it is")
    title: str | None = Field(description="null: none")
    text: str | None = Field(description="null: none")
    categories: list[str] = Field(description="each once")
    tags: list[str] = Field(description="each once")
    creator: str | None = Field(description="who made it")
    published_at: datetime | None = Field(description="RFC 3339, UTC")
    features: list[float] | None = Field(description="as float32 has them")
    attributes: dict[str, Any] = Field(description="as given")
    created_at: datetime = Field(description="RFC 3339, UTC")
    updated_at: datetime = Field(description="RFC 3339, UTC")


class ItemPage(BaseModel):
    """Items in the order of their creation."""

    model_config = example(items=[STORED], next_cursor=None)

    items: list[ItemAnswer] = Field(description="at most `limit`")
    next_cursor: str | None = Field(description="null where there is no more")


BODY = TypeAdapter(ItemBody)
BODIES = TypeAdapter(Annotated[list[ItemWithId], Field(max_length=1000)])
PATCH = TypeAdapter(ItemPatch)


@router.put(
    "/{item_id}",
    response_model=ItemAnswer,
    responses={201: {"model": ItemAnswer, "description": "The item is new, or back after a deletion"}},
    dependencies=WRITE,
    summary="Create or replace an item",
    openapi_extra=documented(ItemBody.model_json_schema(), {"item": EXAMPLE}),
)
def put_item(resources: ResourcesDep, item_id: ItemId, raw: RawBody) -> Response:
    """It can be recommended by its content within a second. An item that was deleted comes back, and what users did
    with it counts again."""
    body = parse(BODY, raw)
    with resources.engine.begin() as db:
        created = items.put(db, [body.item(item_id)])
        stored = items.get(db, item_id)
    return json_answer(stored, 201 if created else 200)


@router.get("/{item_id}", response_model=ItemAnswer, dependencies=READ, summary="One item")
def get_item(resources: ResourcesDep, item_id: ItemId) -> Response:
    with resources.engine.connect() as db:
        return json_answer(items.get(db, item_id))


@router.patch(
    "/{item_id}",
    response_model=ItemAnswer,
    dependencies=WRITE,
    summary="Change some fields of an item",
    openapi_extra=documented(ItemPatch.model_json_schema(), {"tags": {"tags": ["walking"]}}),
)
def patch_item(resources: ResourcesDep, item_id: ItemId, raw: RawBody) -> Response:
    changes = parse(PATCH, raw).changes()
    with resources.engine.begin() as db:
        items.patch(db, item_id, changes)
        stored = items.get(db, item_id)
    return json_answer(stored)


@router.delete("/{item_id}", status_code=204, dependencies=WRITE, summary="Delete an item")
def delete_item(resources: ResourcesDep, item_id: ItemId) -> None:
    """It is in no answer any more, from the next request of every worker on. Its content is forgotten; what users did
    with it stays."""
    with resources.engine.begin() as db:
        items.delete(db, item_id)
    resources.publish_versions()


@router.post(
    "",
    response_model=Upserted,
    dependencies=WRITE,
    summary="Create or replace up to 1,000 items",
    openapi_extra=documented(many(ItemWithId.model_json_schema()), {"items": [EXAMPLE | {"item_id": "i42"}]}),
)
def post_items(resources: ResourcesDep, raw: RawBody) -> Response:
    """All or none. An array that names an item twice is refused."""
    bodies = parse(BODIES, raw)
    each_once([body.item_id for body in bodies], "item_id")
    with resources.engine.begin() as db:
        created = items.put(db, [body.item(body.item_id) for body in bodies])
    return json_answer({"created": created, "updated": len(bodies) - created})


@router.get("", response_model=ItemPage, dependencies=READ, summary="All items, or those of a category or kind")
def list_items(
    resources: ResourcesDep,
    category: Annotated[Name | None, Query(description="only in this category")] = None,
    kind: Annotated[Name | None, Query(description="only of this kind")] = None,
    limit: PageLimit = 100,
    cursor: Cursor = None,
) -> Response:
    of = f"items {category!r} {kind!r}"
    after = -1 if cursor is None else decode_cursor(cursor, int, of)
    with resources.engine.connect() as db:
        found = items.page(db, category=category, kind=kind, after_row=after, limit=limit + 1)
    return json_answer(listing(found, limit, "row", of))
