"""POST /recommend/next: a player reports what was heard and gets the next track, in one round trip."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, TypeAdapter, field_validator, model_validator

from app.api.bodies import JsonAnswer, RawBody, Strict, documented, example, json_answer, parse
from app.api.dependencies import ResourcesDep, require
from app.api.direct_route import DirectBodyRoute
from app.api.events import mint_event_id
from app.api.ids import EventId, ItemId, SessionId, UserId
from app.api.instants import PastInstant
from app.api.recommend import SHOWN, RecommendationPage, items_body
from app.serving.next_page import NextAsk, NextPage

router = APIRouter(prefix="/recommend/next", tags=["recommendations"])

EXAMPLE = {"user_id": "ann", "session_id": "s1", "item_id": "t9", "listened": 0.85, "limit": 1}


class NextBody(Strict):
    """What was heard, and what is wanted."""

    user_id: UserId
    session_id: SessionId
    item_id: ItemId | None = Field(default=None, description="the track that was listened to; absent: none yet")
    listened: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0)] | None = Field(
        default=None, description="the fraction of it that was played, 0–1 (above 1 counts as 1); needed with item_id"
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=100)] = Field(default=1, description="tracks to answer with")
    event_id: EventId | None = Field(default=None, description="a call that comes again with it gets the same tracks")
    timestamp: PastInstant | None = Field(default=None, description="when it was heard; absent: now")
    repeat: Literal["never", "allow"] = Field(
        default="never", description="whether a track of this session may come again while anything else is left"
    )

    @field_validator("listened")
    @classmethod
    def _at_most_all(cls, listened: float | None) -> float | None:
        return None if listened is None else min(listened, 1.0)

    @model_validator(mode="after")
    def _both_or_none(self) -> NextBody:
        if (self.item_id is None) != (self.listened is None):
            given, lacking = ("listened", "item_id") if self.item_id is None else ("item_id", "listened")
            raise ValueError(f"{given} needs {lacking}: which track, and how much of it was played")
        return self

    def ask(self) -> NextAsk:
        return NextAsk(
            user_id=self.user_id,
            session_id=self.session_id,
            item_id=self.item_id,
            listened=self.listened or 0.0,
            event_id=self.event_id or mint_event_id(),
            is_retriable=self.event_id is not None,
            at=self.timestamp,
            limit=self.limit,
            may_repeat=self.repeat == "allow",
        )


class NextTrackPage(RecommendationPage):
    """The next tracks of a session."""

    model_config = example(
        request_id="01M80RBGW0PBSERYZ8P3B1M86S",
        user_id="ann",
        session_id="s1",
        route="listening",
        recommender="next_track",
        release="2026-11-22T09-30-00Z-3f2a",
        experiments=[],
        items=[SHOWN],
        next_cursor=None,
        recorded=True,
        new_session=False,
    )

    session_id: str = Field(description="as asked for")
    recorded: bool | None = Field(
        description="whether the listen is durable; false: send it again, with its event_id; null: there was none"
    )
    new_session: bool = Field(description="whether the session began with this call: its id is new, or had expired")


class SessionEnded(BaseModel):
    """The session is over."""

    model_config = example(session_id="s1", ended=True)

    session_id: str = Field(description="as asked for")
    ended: bool = Field(description="always true")


ADAPTER = TypeAdapter(NextBody)


async def post_next(resources: ResourcesDep, raw: RawBody) -> Response:
    """Records the listen, if one is given, and answers with what comes next in this session. `position` counts all that
    the session was given. 404 for a session of another user."""
    ask = parse(ADAPTER, raw).ask()
    return JsonAnswer(_body(ask, await resources.next_tracks.next(ask)))


router.add_api_route(
    "",
    post_next,
    methods=["POST"],
    response_model=NextTrackPage,
    dependencies=[Depends(require("read")), Depends(require("write"))],
    summary="Record a listen, get the next track",
    openapi_extra=documented(NextBody.model_json_schema(), {"listened": EXAMPLE}),
    route_class_override=DirectBodyRoute,
)


@router.delete(
    "/{session_id}", response_model=SessionEnded, dependencies=[Depends(require("write"))], summary="End a session"
)
async def end_session(resources: ResourcesDep, session_id: SessionId) -> Response:
    """A call with the same id begins anew. 404 where there is no such session, or it has expired."""
    await resources.next_tracks.end(session_id)
    return json_answer({"session_id": session_id, "ended": True})


def _body(ask: NextAsk, page: NextPage) -> dict[str, Any]:
    return {
        "request_id": page.request_id,
        "user_id": ask.user_id,
        "session_id": ask.session_id,
        "route": page.route,
        "recommender": page.recommender,
        "release": page.release,
        "experiments": [],
        "items": items_body(page.items, page.inventory, page.first_position),
        "next_cursor": None,
        "recorded": page.recorded,
        "new_session": page.is_new,
    }
