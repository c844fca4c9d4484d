"""One answer, step by step: context → route → retrieve → rules → slate → answer → impression."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app import telemetry
from app.catalog.rules import Promotion
from app.errors import Gone, Invalid
from app.experiments.assigning import Assigned, Run, assigned
from app.experiments.exposure_log import WAIT_SECONDS, ExposureLog
from app.experiments.exposures import Mark
from app.feedback.user_state import UserView
from app.serving import routing
from app.serving.arms import NO_ARM, Arm, arm_of
from app.serving.context import ContextReader, UserContext
from app.serving.exploration import Draw, Exploration, Sampler
from app.serving.impressions import Impression, ImpressionWriter
from app.serving.inventory import Inventory, InventoryHost
from app.serving.pages import PageStore, Pinned
from app.serving.pasts import NO_PAST
from app.serving.request_ids import new_request_id
from app.serving.retrieve import Retrieved, below, retrieve, with_reasons
from app.serving.slate import Shown, boosted, diversified, pins_of, with_pins, without_pinned
from models.contracts import Query

_counter = telemetry.labelled(telemetry.RECOMMENDATIONS)

LOOKAHEAD = 40
"""Items ranked beyond the asked page: what the next pages are cut from, and what diversity chooses among."""


class Ask(NamedTuple):
    """What a caller wants of GET /recommend; API.md gives the meaning of each field.

    diversity: None where the caller does not mind: 0, unless an experiment says otherwise
    at:        unix seconds to answer as of, None for now
    is_bot:    a crawler asks: its exposures are marked
    """

    user_id: str
    limit: int = 10
    categories: tuple[str, ...] = ()
    kind: str | None = None
    creator: str | None = None
    exclude: tuple[str, ...] = ()
    surface: str = "feed"
    recommender: str | None = None
    diversity: float | None = None
    include_seen: bool = False
    at: float | None = None
    is_bot: bool = False


class Page(NamedTuple):
    """An answer: `items` are in order, the first at `first_position` (from 1)."""

    request_id: str
    user_id: str
    route: str
    recommender: str
    release: str | None
    experiments: tuple[dict[str, Any], ...]
    first_position: int
    items: tuple[Shown, ...]
    inventory: Inventory
    next_cursor: str | None


class Pipeline:
    """Conducts a request through its steps. Holds no state of its own."""

    def __init__(
        self,
        *,
        contexts: ContextReader,
        inventories: InventoryHost,
        pages: PageStore,
        impressions: ImpressionWriter,
        exploration: Exploration,
        exposures: ExposureLog,
    ) -> None:
        self._contexts = contexts
        self._inventories = inventories
        self._pages = pages
        self._impressions = impressions
        self._exploration = exploration
        self._exposures = exposures

    async def recommend(self, ask: Ask) -> Page:
        """The first page. Raises Invalid for a recommender that does not exist, and for an `at` that is over."""
        context = (await self._contexts.read(ask.user_id)).as_of(ask.at)
        inventory = await self._inventories.caught_up(context.versions)
        _refuse_the_past(ask, inventory)
        query = build_query(ask, context.view, inventory)
        request_id = new_request_id()
        sampler = self._sampler(ask, request_id)
        if not inventory.experiments or not _is_natural(ask):
            ranked = rank(ask, context, inventory, query, sampler=sampler)
        else:
            ranked = await self._in_arm(ask, context, inventory, query, request_id=request_id, sampler=sampler)
        return self._answer(request_id, ask, ranked, inventory, query, route=ranked.route)

    async def _in_arm(
        self,
        ask: Ask,
        context: UserContext,
        inventory: Inventory,
        query: Query,
        *,
        request_id: str,
        sampler: Sampler | None,
    ) -> Pinned:
        """What the user's variants make of it. They are noted before the model runs: what it does must not choose who
        counts."""
        deletions = inventory.versions["deletions"]
        fixed = self._exposures.exposed(ask.user_id, deletions) if context.view is None else context.view.exposed
        mine = assigned_to(ask, context, inventory, fixed)
        arm = arm_of(mine)
        note = partial(
            self._exposures.note,
            user_id=ask.user_id,
            route=routing.route_of(context),
            surface=ask.surface,
            release=inventory.release.release_id,
            request_id=request_id,
            fixed=fixed,
            deletions=deletions,
        )
        marks: tuple[Mark, ...] = (*(("bot",) if ask.is_bot else ()), *(("explored",) if sampler is not None else ()))
        noted = note(mine, marks=marks) if mine else None
        ranked = rank(ask, context, inventory, query, sampler=sampler, arm=arm)
        if arm.recommender not in (None, ranked.recommender):
            note([each for each in mine if each.variant.recommender is not None], marks=(*marks, "fallback"))
        if noted is not None:
            await asyncio.wait([noted], timeout=WAIT_SECONDS)
        return ranked

    async def next_page(self, ask: Ask, cursor: str) -> Page:
        """A later page of the slate that the cursor pins. Raises Invalid, Gone."""
        pinned = await self._pages.get(cursor, "recommend", ask.user_id)
        _refuse_other_question(pinned, ask)
        context = (await self._contexts.read(ask.user_id)).as_of(ask.at)
        _refuse_of_an_erased_user(pinned, context)
        inventory = await self._inventories.caught_up(context.versions)
        query = build_query(ask, context.view, inventory)
        pinned = pinned._replace(remaining=still_showable(pinned.remaining, query, inventory))
        request_id = new_request_id()
        if len(pinned.remaining) <= ask.limit:
            sampler = None if pinned.slate_id is None else self._exploration.sampler_anyway(request_id)
            pinned = extended(pinned, ask, context, inventory, sampler=sampler)
        # Of this page alone: what is pinned again keeps the route of its slate.
        is_blind = (context.view is None or inventory.is_stale) and pinned.route != "forced"
        return self._answer(request_id, ask, pinned, inventory, query, route="degraded" if is_blind else pinned.route)

    def _sampler(self, ask: Ask, request_id: str) -> Sampler | None:
        """Only what people see of their own accord is drawn: neither a replay nor a forced recommender."""
        return self._exploration.sampler(ask.user_id, request_id) if _is_natural(ask) else None

    def _answer(
        self, request_id: str, ask: Ask, pinned: Pinned, inventory: Inventory, query: Query, *, route: str
    ) -> Page:
        shown, rest = pinned.remaining[: ask.limit], pinned.remaining[ask.limit :]
        given = (*pinned.given, *[item.row for item in shown])
        page = Page(
            request_id=request_id,
            user_id=ask.user_id,
            route=route,
            recommender=pinned.recommender,
            release=pinned.release,
            experiments=tuple({"key": key, "variant": variant} for key, variant in pinned.variants.items()),
            first_position=len(pinned.given) + 1,
            items=tuple(with_reasons(inventory.release, shown, query, pinned.recommender)),
            inventory=inventory,
            next_cursor=self._pages.put(pinned._replace(given=given, remaining=rest, draw=None)) if rest else None,
        )
        _counter(page.route, page.recommender).inc()
        if pinned.slate_id is not None:
            telemetry.EXPLORED.labels(page.route).inc()
        if ask.at is None:
            self._impressions.record(_impression(page, ask, pinned))
        return page


def rank(
    ask: Ask,
    context: UserContext,
    inventory: Inventory,
    query: Query,
    *,
    first_position: int = 1,
    sampler: Sampler | None = None,
    arm: Arm = NO_ARM,
) -> Pinned:
    """Everything that decides: the route, the candidates, the slate.

    sampler: draws the order of the organic items; None leaves it.
    arm: what the experiments that the user is in change.
    Raises Invalid for a recommender that the caller insists on and that is not served.
    """
    if ask.recommender is not None and ask.recommender not in inventory.release.recommenders:
        known = ", ".join(sorted(inventory.release.recommenders))
        raise Invalid.field(("query", "recommender"), f"{ask.recommender!r} is not served now; there are: {known}")
    decision = routing.decide(context, forced=ask.recommender, arm=arm)
    retrieved = retrieve(inventory.release, decision.chain, query)
    promotions = inventory.rules.promoted(categories=ask.categories, at=query.at) if arm.promotions else ()
    slate, draw = arrange(
        retrieved.candidates,
        promotions,
        query,
        inventory,
        ask,
        diversity=arm.diversity(ask.diversity),
        first_position=first_position,
        sampler=sampler,
    )
    return Pinned(
        endpoint="recommend",
        asked=_question(ask),
        route=_route_of(decision, retrieved, inventory),
        recommender=retrieved.leader,
        release=inventory.release.release_id,
        variants=dict(arm.variants),
        given=(),
        remaining=slate,
        user_row=None if context.view is None else context.view.user_row,
        slate_id=None if sampler is None else sampler.seed,
        draw=draw,
        arm=arm,
    )


def _route_of(decision: routing.Decision, retrieved: Retrieved, inventory: Inventory) -> str:
    """`degraded` where there is no release, the rules are stale, or the recommender that should lead is missing."""
    lost = inventory.release.release_id is None or inventory.is_stale or decision.chain[0] in retrieved.missing
    return "degraded" if lost and decision.route != "forced" else decision.route


def assigned_to(
    ask: Ask, context: UserContext, inventory: Inventory, fixed: Collection[Run] | None = None
) -> tuple[Assigned, ...]:
    """The user's variants in the experiments that run, decided by what was known before this request.

    fixed: in which experiments with a route the user is for good; None: as the user's past has it
    """
    if fixed is None:
        fixed = () if context.view is None else context.view.exposed
    route = routing.route_of(context)
    return assigned(inventory.experiments, ask.user_id, surface=ask.surface, route=route, exposed=fixed)


def _is_natural(ask: Ask) -> bool:
    """Whether people see it of their own accord: neither a replay nor a recommender that somebody insists on."""
    return ask.at is None and ask.recommender is None


def build_query(ask: Ask, view: UserView | None, inventory: Inventory, *, given: Sequence[int] = ()) -> Query:
    """The question to the recommenders: filters, blocks, what was seen and given, and the user's history."""
    at = time.time() if ask.at is None else ask.at
    past = NO_PAST if view is None else inventory.release.past_of(view)
    hidden = _hidden_rows(ask, inventory, at, given)
    excluded = NO_PAST.seen if ask.include_seen else past.seen
    if hidden:
        positions = inventory.release.positions(np.concatenate(hidden))
        excluded = np.concatenate([positions[positions >= 0], excluded])
    return Query(
        limit=ask.limit + LOOKAHEAD,
        at=at,
        history=past.history,
        eligible=inventory.eligible(categories=ask.categories, kind=ask.kind, creator=ask.creator),
        excluded=excluded,
        preferred_categories=view.preferred_categories if view is not None else (),
        live=inventory.live,
    )


def _hidden_rows(ask: Ask, inventory: Inventory, at: float, given: Sequence[int]) -> list[NDArray[np.int32]]:
    """What this request must not show, beside what nobody is shown, which is not eligible, and what the user saw."""
    hidden = []
    blocked = inventory.rules.blocked(user_id=ask.user_id, categories=ask.categories, at=at)
    if blocked is not inventory.rules.blocked_always:
        hidden.append(blocked)
    if ask.exclude:
        hidden.append(inventory.catalog.rows(ask.exclude))
    if given:
        hidden.append(np.array(given, np.int32))
    return hidden


def arrange(
    candidates: Sequence[Shown],
    promotions: Sequence[Promotion],
    query: Query,
    inventory: Inventory,
    ask: Ask,
    *,
    diversity: float,
    first_position: int = 1,
    sampler: Sampler | None = None,
) -> tuple[Sequence[Shown], Draw | None]:
    """Boosts, diversity, the draw and pins, in this order; pins obey the request's filters like everything else."""
    slate = boosted(candidates, promotions)
    if diversity > 0:
        categories = [inventory.catalog.categories[shown.row] for shown in slate]
        slate = diversified(slate, categories, diversity, ask.limit)
    pins: dict[int, int] = {}
    if first_position == 1:
        pinned = [promotion.item_row for promotion in promotions if promotion.position is not None]
        pins = pins_of(promotions, allowed_rows(pinned, query, inventory)) if pinned else {}
    slate = without_pinned(slate, pins)
    draw = None if sampler is None else sampler.draw(slate)
    return with_pins(slate if draw is None else draw.ranking, pins), draw


def allowed_rows(rows: Sequence[int], query: Query, inventory: Inventory) -> set[int]:
    """Those of the rows that the query neither filters out nor excludes."""
    positions = inventory.release.positions(np.array(rows, np.int32))
    excluded = set(query.excluded.tolist())
    return {
        row
        for row, position in zip(rows, positions.tolist(), strict=True)
        if position >= 0 and position not in excluded and (query.eligible is None or query.eligible[position])
    }


def still_showable(remaining: Sequence[Shown], query: Query, inventory: Inventory) -> tuple[Shown, ...]:
    """What of a pinned slate may still be shown: not what was blocked, deleted or seen meanwhile."""
    allowed = allowed_rows([shown.row for shown in remaining], query, inventory)
    return tuple(shown for shown in remaining if shown.row in allowed)


def extended(
    pinned: Pinned, ask: Ask, context: UserContext, inventory: Inventory, *, sampler: Sampler | None = None
) -> Pinned:
    """The pinned slate and what the recommenders give beyond it, all scored below it."""
    known = [*pinned.given, *(shown.row for shown in pinned.remaining)]
    query = build_query(ask, context.view, inventory, given=known)
    more = rank(ask, context, inventory, query, first_position=len(known) + 1, sampler=sampler, arm=pinned.arm)
    return pinned._replace(remaining=(*pinned.remaining, *below(pinned.remaining, more.remaining)), draw=more.draw)


def _refuse_the_past(ask: Ask, inventory: Inventory) -> None:
    """Decayed counters can't be turned back to before an event that they hold."""
    newest = inventory.live.newest
    if ask.at is not None and ask.at < newest:
        held = datetime.fromtimestamp(newest, UTC).isoformat()
        raise Invalid.field(("query", "at"), f"is earlier than the newest event that the live counters hold ({held})")


def _question(ask: Ask) -> dict[str, Any]:
    """What pages of one slate must agree on: everything but how many items a page holds."""
    asked = ask._asdict()
    del asked["limit"], asked["is_bot"]
    asked["diversity"] = ask.diversity or 0.0
    return asked


def _refuse_of_an_erased_user(pinned: Pinned, context: UserContext) -> None:
    """Workers remember slates themselves, where no erasure reaches them; but rows are never given twice."""
    if pinned.user_row is not None and context.view is not None and context.view.user_row != pinned.user_row:
        raise Gone("query.cursor: what it stood for was erased with its user; start again without one")


def _refuse_other_question(pinned: Pinned, ask: Ask) -> None:
    question = _question(ask)
    for name, value in pinned.asked.items():
        # As JSON it was kept with lists.
        now = list(question[name]) if isinstance(question[name], tuple) else question[name]
        if now != value:
            raise Invalid.field(("query", "cursor"), f"was given for {name}={value!r}, not {now!r}")


def _impression(page: Page, ask: Ask, pinned: Pinned) -> Impression:
    return Impression(
        request_id=page.request_id,
        shown_at=datetime.now(UTC),
        user_id=ask.user_id,
        surface=ask.surface,
        route=page.route,
        recommender=page.recommender,
        release=page.release,
        variants=pinned.variants,
        first_position=page.first_position,
        items=page.items,
        slate_id=pinned.slate_id,
        draw=pinned.draw,
    )
