"""GET /recommend and what belongs to it."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.bodies import JsonAnswer, example
from app.api.crawlers import is_crawler
from app.api.dependencies import Caller, ResourcesDep, require
from app.api.direct_route import DirectRoute
from app.api.ids import ItemId, UserId
from app.api.instants import Instant
from app.errors import Forbidden, Invalid, Unavailable
from app.resources import Resources
from app.serving.explain import explain
from app.serving.inventory import Inventory
from app.serving.pages import Pinned
from app.serving.pipeline import Ask, Page
from app.serving.popular import popular_items, window_of
from app.serving.similar import similar_items
from app.serving.slate import Shown
from models.contracts import ReasonCode

router = APIRouter(prefix="/recommend", tags=["recommendations"], dependencies=[Depends(require("read"))])

WATERMARK_SECONDS = 2.0
_WATERMARK = re.compile(r"^[0-9]{1,19}$", re.ASCII)

Name = Annotated[str, Field(min_length=1, max_length=128)]
Surface = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items on this page")]
Categories = Annotated[
    list[Name],
    Query(alias="category", max_length=100, description="any of these categories; repeatable"),
]
Cursor = Annotated[str | None, Query(max_length=128, description="`next_cursor` of the page before")]

SHOWN = {
    "item_id": "i42", "position": 1, "score": 0.87, "source": "als_hybrid", "promoted": False,
    "reason": {"code": "similar_to_liked", "item_id": "i7"},
}  # fmt: skip


class ReasonBody(BaseModel):
    """Why an item is in the answer."""

    code: ReasonCode = Field(description="what speaks for the item")
    item_id: str | None = Field(default=None, description="the item that led here, where there is one")


class RecommendedItem(BaseModel):
    """One item of a slate."""

    item_id: str = Field(description="the caller's id", examples=["i42"])
    position: int = Field(ge=1, description="from 1, going on over the pages")
    score: float = Field(description="orders the unpromoted items of this answer; means nothing across answers")
    source: str = Field(description="the recommender that put it here, or `promotion`", examples=["als_hybrid"])
    promoted: bool = Field(description="whether a promotion pinned or boosted it")
    reason: ReasonBody = Field(description="why it is here")


class ExperimentBody(BaseModel):
    """An experiment that this user is in."""

    key: str = Field(description="of the experiment")
    variant: str = Field(description="that the user is in")


class RecommendationPage(BaseModel):
    """A page of recommendations."""

    model_config = example(
        request_id="01M80RBGW0PBSERYZ8P3B1M86S",
        user_id="ann",
        route="established",
        recommender="blend",
        release="2026-11-22T09-30-00Z-3f2a",
        experiments=[],
        items=[SHOWN],
        next_cursor="6b027011tUVX8SxFLhwDWHcS",
    )

    request_id: str = Field(description="ours, one per page: events tie back to it")
    user_id: str = Field(description="as asked for")
    route: Literal["new", "few", "established", "listening", "degraded", "forced"] = Field(
        description="why this recommender was asked"
    )
    recommender: str = Field(description="the one that led", examples=["blend"])
    release: str | None = Field(description="whose models answered; null: none is live")
    experiments: list[ExperimentBody] = Field(description="that had a say in this answer")
    items: list[RecommendedItem] = Field(description="best first; fewer than `limit` only where there is no more")
    next_cursor: str | None = Field(description="null where there is no more")


class ItemPage(BaseModel):
    """A page of items without a user."""

    model_config = example(items=[SHOWN], next_cursor=None)

    items: list[RecommendedItem] = Field(description="best first")
    next_cursor: str | None = Field(description="null where there is no more")


class PopularPage(ItemPage):
    """A page of what everybody chooses."""

    model_config = example(items=[SHOWN], next_cursor=None, window="7d")

    window: str = Field(description="the one that answered: wider than asked for where that one is empty")


class SourceBody(BaseModel):
    """What one recommender says of the item."""

    source: str = Field(description="the recommender")
    score: float | None = Field(description="null where it has no opinion")
    rank: int | None = Field(description="from 1, among the items that the request allows")


class ExplanationBody(BaseModel):
    """Why an item is, or is not, in a user's list."""

    model_config = example(
        user_id="ann",
        item_id="i42",
        route="established",
        recommender="blend",
        release="2026-11-22T09-30-00Z-3f2a",
        shown=False,
        position=None,
        removed_by="below_cut",
        sources=[{"source": "popularity", "score": 0.025, "rank": 196}],
        rules=[],
        weights={"popularity": 1.0, "item_similarity": 0.65},
    )

    user_id: str = Field(description="as asked for")
    item_id: str = Field(description="as asked for")
    route: str = Field(description="as in GET /recommend")
    recommender: str = Field(description="the one that led")
    release: str | None = Field(description="whose models answered; null: none is live")
    shown: bool = Field(description="whether it is on the first page")
    position: int | None = Field(description="on the first page; null where it is not shown there")
    removed_by: Literal["blocked", "seen", "below_cut", "not_retrieved", "capped"] | None = Field(
        description="the step that removed it; null where it is shown"
    )
    sources: list[SourceBody] = Field(description="what each recommender says of it")
    rules: list[dict[str, Any]] = Field(description="blocks and promotions in force on this item for this user")
    weights: dict[str, float] = Field(description="of the learned blend, by feature")


class RecommendQuery(BaseModel):
    """The parameters of GET /recommend, as one model: validated in one go."""

    user_id: UserId = Field(description="an unknown user is a new one, never an error", examples=["42"])
    limit: int = Field(default=10, ge=1, le=1000, description="items on this page")
    category: tuple[Name, ...] = Field(default=(), max_length=100, description="any of these categories; repeatable")
    kind: Name | None = Field(default=None, description="only items of this kind")
    creator: Name | None = Field(default=None, description="only items by this creator")
    exclude: tuple[ItemId, ...] = Field(default=(), max_length=1000, description="never these items; repeatable")
    surface: Surface = Field(default="feed", description="where the slate will be shown")
    recommender: Name | None = Field(default=None, description="force one by name")
    diversity: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="0: by relevance alone, 1: by variety alone; default 0 where no experiment sets it",
    )
    include_seen: bool = Field(default=False, description="also items that the user has interacted with")
    cursor: str | None = Field(default=None, max_length=128, description="`next_cursor` of the page before")
    at: Instant | None = Field(default=None, description="answer as of this time (scope admin; leaves no impression)")
    min_watermark: str | None = Field(
        default=None, max_length=64, description="wait, at most 2 s, until this `watermark` is counted"
    )

    def ask(self) -> Ask:
        return Ask(
            user_id=self.user_id,
            limit=self.limit,
            categories=self.category,
            kind=self.kind,
            creator=self.creator,
            exclude=self.exclude,
            surface=self.surface,
            recommender=self.recommender,
            diversity=self.diversity,
            include_seen=self.include_seen,
            at=self.at.timestamp() if self.at else None,
        )


async def recommend(
    resources: ResourcesDep, caller: Caller, query: Annotated[RecommendQuery, Query()], request: Request
) -> Response:
    """Routed by what is known of the user: popular items for nobody, a learned blend for the rest; running experiments
    change it. A back end hands on its visitor's agent as `X-Visitor-User-Agent`: results leave crawlers out."""
    if query.at is not None and "admin" not in caller.scopes:
        raise Forbidden(f"query.at: key {caller.name!r} lacks the scope 'admin'")
    if query.min_watermark is not None:
        await _counted(resources, query.min_watermark)
    ask, pipeline = query.ask(), resources.pipeline
    if resources.inventories.current.experiments and is_crawler(request.headers):
        ask = ask._replace(is_bot=True)
    page = await (pipeline.recommend(ask) if query.cursor is None else pipeline.next_page(ask, query.cursor))
    return JsonAnswer(page_body(page))


router.add_api_route(
    "",
    recommend,
    methods=["GET"],
    response_model=RecommendationPage,
    summary="What this user should see next",
    route_class_override=DirectRoute,
)


@router.get("/popular", response_model=PopularPage, summary="What everybody chooses")
async def popular(
    resources: ResourcesDep,
    category: Categories = [],  # noqa: B006 - FastAPI copies it
    window: Annotated[str, Query(max_length=8, description="`1h` … `365d`, or `all`", examples=["7d"])] = "7d",
    limit: Limit = 10,
    cursor: Cursor = None,
) -> Response:
    """Most chosen in this window first, the newer the more; where nobody chose anything, in the next wider one."""
    wanted, asked = window_of(window), {"window": window, "category": category}
    if cursor is not None:
        return await _next_items(resources, "popular", asked, cursor, limit)
    inventory = await _inventory(resources)
    found = popular_items(inventory, resources.live.state, wanted, categories=tuple(category), limit=1000)
    slate = _slate(inventory, "popular", asked, found.items, window=found.window)
    return _items_page(resources, inventory, slate, limit)


@router.get("/similar/{item_id}", response_model=ItemPage, summary="Items like this one")
async def similar(resources: ResourcesDep, item_id: ItemId, limit: Limit = 10, cursor: Cursor = None) -> Response:
    """404 only where the item does not exist."""
    asked = {"item_id": item_id}
    if cursor is not None:
        return await _next_items(resources, "similar", asked, cursor, limit)
    inventory = await _inventory(resources)
    found = similar_items(inventory, item_id, limit=1000)
    return _items_page(resources, inventory, _slate(inventory, "similar", asked, found), limit)


@router.get("/explain", response_model=ExplanationBody, summary="Why an item is, or is not, shown to a user")
async def explain_item(resources: ResourcesDep, user_id: UserId, item_id: ItemId, limit: Limit = 10) -> Response:
    """Runs the request for real and looks where the item went; leaves no impression."""
    context = await resources.contexts.read(user_id)
    inventory = await resources.inventories.caught_up(context.versions)
    return JsonAnswer(asdict(explain(context, inventory, item_id, limit=limit)))


def page_body(page: Page) -> dict[str, Any]:
    """The page as API.md has it."""
    return {
        "request_id": page.request_id,
        "user_id": page.user_id,
        "route": page.route,
        "recommender": page.recommender,
        "release": page.release,
        "experiments": page.experiments,
        "items": items_body(page.items, page.inventory, page.first_position),
        "next_cursor": page.next_cursor,
    }


def items_body(
    shown: tuple[Shown, ...] | list[Shown], inventory: Inventory, first_position: int
) -> list[dict[str, Any]]:
    """The items of an answer, as API.md has them."""
    ids = inventory.catalog.ids
    return [
        {
            "item_id": ids[item.row],
            "position": position,
            "score": item.score,
            "source": item.source,
            "promoted": item.promoted,
            "reason": {
                "code": item.reason.code,
                "item_id": None if item.reason.seed is None else ids[item.reason.seed],
            },
        }
        for position, item in enumerate(shown, first_position)
    ]


async def _inventory(resources: Resources) -> Inventory:
    """What can be shown, with every block and deletion that was acknowledged before this request."""
    return await resources.inventories.caught_up(await resources.contexts.versions())


def _slate(
    inventory: Inventory, endpoint: str, asked: dict[str, Any], found: list[Shown], *, window: str | None = None
) -> Pinned:
    """A slate that is nobody's."""
    release_id = inventory.release.release_id
    return Pinned(endpoint, asked, endpoint, endpoint, release_id, {}, (), tuple(found), window=window)


async def _next_items(resources: Resources, endpoint: str, asked: dict[str, Any], cursor: str, limit: int) -> Response:
    pinned = await resources.pages.get(cursor, endpoint)
    if pinned.asked != asked:
        raise Invalid.field(("query", "cursor"), f"was given for {pinned.asked}, not {asked}")
    return _items_page(resources, await _inventory(resources), pinned, limit)


def _items_page(resources: Resources, inventory: Inventory, pinned: Pinned, limit: int) -> Response:
    categories = pinned.asked.get("category", ())
    blocked = set(inventory.rules.blocked(user_id="", categories=categories, at=time.time()).tolist())
    exists = inventory.catalog.exists
    remaining = [item for item in pinned.remaining if item.row not in blocked and exists[item.row]]
    shown, rest = remaining[:limit], remaining[limit:]
    given = (*pinned.given, *(item.row for item in shown))
    cursor = resources.pages.put(pinned._replace(given=given, remaining=tuple(rest))) if rest else None
    body = {"items": items_body(shown, inventory, len(pinned.given) + 1), "next_cursor": cursor}
    return JsonAnswer(body if pinned.window is None else body | {"window": pinned.window})


async def _counted(resources: Resources, watermark: str) -> None:
    """Waits until everything up to the watermark is committed, in this worker's live signals, and its items known."""
    if not _WATERMARK.match(watermark):
        raise Invalid.field(("query", "min_watermark"), f"{watermark!r} is not a watermark of this service")
    if not await resources.counted(int(watermark), WATERMARK_SECONDS):
        raise Unavailable(f"query.min_watermark: {watermark} is not counted after {WATERMARK_SECONDS:.0f} s")
