"""POST /events: what users did."""

from __future__ import annotations

import re
import secrets
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, GetJsonSchemaHandler, TypeAdapter, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from app import telemetry
from app.api.bodies import RawBody, Strict, documented, example, json_answer, many, parse
from app.api.dependencies import ResourcesDep, require
from app.api.direct_route import DirectBodyRoute
from app.api.ids import EventId, ItemId, RequestId, SessionId, UserId
from app.api.instants import PastInstant
from app.errors import FieldError, Invalid
from app.feedback.events import Event

router = APIRouter(tags=["events"], dependencies=[Depends(require("write"))], route_class=DirectBodyRoute)

Kind = Literal[
    "impression", "view", "like", "dislike", "rating", "listen", "click", "share", "bookmark", "purchase",
    "skip", "hide",
]  # fmt: skip


class EventBody(Strict):
    """What a user did with an item."""

    event_id: EventId | None = Field(default=None, description="makes a retry harmless; minted here if absent")
    user_id: UserId
    item_id: ItemId
    kind: Kind
    value: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        default=None,
        validate_default=True,
        description="rating: stars, 0–5; listen: fraction of the track, 0–1 (above 1 counts as 1); other kinds: null",
    )
    timestamp: PastInstant | None = Field(
        default=None, description="when it happened, at most 5 minutes ahead of the server; absent: now"
    )
    session_id: SessionId | None = None
    request_id: RequestId | None = Field(default=None, description="ties the event to the page that was shown")

    @field_validator("value")
    @classmethod
    def _fits_kind(cls, value: float | None, info: ValidationInfo) -> float | None:
        return _checked_value(info.data.get("kind"), value)

    def event(self) -> Event:
        return Event(
            self.event_id or mint_event_id(),
            self.user_id,
            self.item_id,
            self.kind,
            self.value,
            self.timestamp,
            self.session_id,
            self.request_id,
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return _by_kind(handler(core))


class EventsAccepted(BaseModel):
    """The events are durable."""

    model_config = example(accepted=3, duplicates=1, watermark="48213")

    accepted: int = Field(description="newly stored (those of an erased user are acknowledged and not stored)")
    duplicates: int = Field(description="stored before, under the same event_id, or older than what is kept")
    watermark: str = Field(description="for `min_watermark` of GET /recommend", examples=["48213"])


def mint_event_id() -> str:
    """Sorts by time, which keeps Postgres' index of ids compact."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _checked_value(kind: str | None, value: float | None) -> float | None:
    match kind:
        case None:
            return value
        case "rating":
            if value is None or not 0 <= value <= 5:
                raise ValueError("a rating needs a value from 0 to 5")
            return value
        case "listen":
            if value is None or value < 0:
                raise ValueError("a listen needs a value from 0 to 1, the fraction that was played")
            return min(value, 1.0)
    if value is not None:
        raise ValueError(f"must be null for kind {kind!r}; only rating and listen have a value")
    return None


def _by_kind(schema: JsonSchemaValue) -> JsonSchemaValue:
    """Says in the schema what `_checked_value` checks: three sorts of event, each with its own value."""
    properties, required = schema["properties"], schema["required"]
    others = [kind for kind in properties["kind"]["enum"] if kind not in ("rating", "listen")]
    description = {"description": properties["value"]["description"]}
    sorts: list[tuple[list[str], dict[str, Any], list[str]]] = [
        (others, {"type": "null"}, required),
        (["rating"], {"type": "number", "minimum": 0, "maximum": 5}, [*required, "value"]),
        (["listen"], {"type": "number", "minimum": 0}, [*required, "value"]),
    ]
    return {
        "title": schema["title"],
        "description": schema["description"],
        "oneOf": [
            {
                "type": "object",
                "properties": properties | {"kind": {"enum": kinds}, "value": value | description},
                "required": needed,
                "additionalProperties": False,
            }
            for kinds, value, needed in sorts
        ],
    }


ONE = TypeAdapter(EventBody)
MANY = TypeAdapter(Annotated[list[EventBody], Field(max_length=1000)])
AN_ARRAY = re.compile(rb"[ \t\r\n]*\[")
SCHEMA = EventBody.model_json_schema()
EXAMPLE = {
    "event_id": "e1", "user_id": "ann", "item_id": "i42", "kind": "like", "value": None,
    "timestamp": "2026-03-14T09:30:00Z", "session_id": None, "request_id": "01JDSQ2Z",
}  # fmt: skip
EXAMPLES = {
    "one": EXAMPLE,
    "several": [EXAMPLE, {"user_id": "ann", "item_id": "i7", "kind": "rating", "value": 4.5}],
}


@router.post(
    "/events",
    status_code=202,
    response_model=EventsAccepted,
    summary="What users did: one event, or up to 1,000",
    openapi_extra=documented({"anyOf": [SCHEMA, many(SCHEMA)]}, EXAMPLES),
)
async def post_events(resources: ResourcesDep, raw: RawBody) -> Response:
    """Answers once the events are durable. A request with an invalid event is refused whole. 503: the outcome is
    unknown or nothing was stored; retry with the same ids. The user's next recommendations reflect the events."""
    events, where = _parsed(raw)
    try:
        receipt = await resources.ingest.submit(events)
    except Invalid as error:
        raise _located(error, where) from None
    telemetry.EVENTS.labels("accepted").inc(receipt.accepted)
    telemetry.EVENTS.labels("duplicate").inc(receipt.duplicates)
    return json_answer(receipt, 202)


def _parsed(raw: bytes) -> tuple[list[Event], Literal["array", "object"]]:
    if AN_ARRAY.match(raw):
        return [body.event() for body in parse(MANY, raw)], "array"
    return [parse(ONE, raw).event()], "object"


def _located(error: Invalid, where: Literal["array", "object"]) -> Invalid:
    """Ingest knows an event's index; the caller of a single object sent none."""
    cut = 0 if where == "array" else 1
    fields = [FieldError(("body", *field.loc[cut:]), field.msg) for field in error.errors]
    return Invalid(error.detail, errors=fields)
