"""/users: who is recommended to, what they like, what they did, and how they are forgotten."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from redis.exceptions import RedisError

from app import telemetry
from app.api.bodies import Attributes, Name, RawBody, Strict, documented, example, json_answer, many, parse
from app.api.cursors import Cursor, PageLimit, decode_cursor
from app.api.dependencies import ResourcesDep, require
from app.api.events import Kind
from app.api.ids import ItemId, UserId
from app.api.lists import distinct, each_once, listing
from app.catalog import users
from app.erasure import erase_user, export_user
from app.feedback import interactions
from app.feedback.likes import deciding_event
from app.feedback.session_export import KeptSession, sessions_of

router = APIRouter(prefix="/users", tags=["users"])
READ = [Depends(require("read"))]
WRITE = [Depends(require("write"))]

StoredKind = Literal[Kind, "unlike"]
Categories = Annotated[list[Name], Field(max_length=100), AfterValidator(distinct)]

EXAMPLE = {"attributes": {"country": "NO"}, "preferred_categories": ["Drama", "Film-Noir"]}
STORED = {"user_id": "ann"} | EXAMPLE | {"created_at": "2026-03-14T09:00:00Z", "updated_at": "2026-03-14T09:00:00Z"}
DONE = {
    "event_id": "e1", "item_id": "i42", "kind": "like", "value": None, "timestamp": "2026-03-14T09:30:00Z",
    "received_at": "2026-03-14T09:30:01Z", "session_id": None, "request_id": None,
}  # fmt: skip


class UserBody(Strict):
    """All that is known of a user apart from what the user did; fields left out become empty."""

    attributes: Attributes = Field(default={}, description="free-form JSON, at most 16 KiB and 16 levels")
    preferred_categories: Categories = Field(default=[], description="at most 100")

    def user(self, user_id: str) -> users.User:
        return users.User(user_id, self.attributes, self.preferred_categories)


class UserWithId(UserBody):
    """A user in an array."""

    user_id: UserId


class UserPatch(Strict):
    """Fields given replace what is stored (null empties it); fields left out stay."""

    attributes: Attributes | None = Field(default=None, description="replaces all attributes; null: none")
    preferred_categories: Categories | None = Field(default=None, description="at most 100; null: none")

    def changes(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"attributes": {}, "preferred_categories": []}
        return {name: getattr(self, name) or empty[name] for name in self.model_fields_set}


class UserAnswer(BaseModel):
    """A user as stored."""

    model_config = example(**STORED)

    user_id: str = Field(description="the caller's id")
    attributes: dict[str, Any] = Field(description="as given")
    preferred_categories: list[str] = Field(description="each once")
    created_at: datetime = Field(description="RFC 3339, UTC")
    updated_at: datetime = Field(description="RFC 3339, UTC")


class UserPage(BaseModel):
    """Users in the order of their creation."""

    model_config = example(items=[STORED], next_cursor=None)

    items: list[UserAnswer] = Field(description="at most `limit`")
    next_cursor: str | None = Field(description="null where there is no more")


class Upserted(BaseModel):
    """The array is stored."""

    model_config = example(created=1, updated=0)

    created: int = Field(description="entries that did not exist")
    updated: int = Field(description="entries that were replaced")


class LikeAnswer(BaseModel):
    """Whether the user likes the item now."""

    model_config = example(liked=True, changed=True, watermark="48213")

    liked: bool = Field(description="as asked for")
    changed: bool = Field(description="false where it was so before")
    watermark: str | None = Field(description="as of POST /events; null where nothing changed", examples=["48213"])


class InteractionAnswer(BaseModel):
    """Something that the user did, as stored."""

    model_config = example(**DONE)

    event_id: str = Field(description="as sent, or minted here")
    item_id: str = Field(description="what it was done with")
    kind: str = Field(description="a kind of POST /events, or `unlike`: a like taken back", examples=["like"])
    value: float | None = Field(description="rating: stars, 0–5; listen: fraction, 0–1")
    timestamp: datetime = Field(description="when it happened, as reported")
    received_at: datetime = Field(description="when it was stored")
    session_id: str | None = Field(description="of the listening session; null: none")
    request_id: str | None = Field(description="of the page that was shown; null: unknown")


class InteractionPage(BaseModel):
    """What the user did, newest first."""

    model_config = example(items=[DONE], next_cursor=None)

    items: list[InteractionAnswer] = Field(description="at most `limit`")
    next_cursor: str | None = Field(description="null where there is no more")


class ErasureAnswer(BaseModel):
    """What was erased."""

    model_config = example(
        erased={
            "likes": 3,
            "event_ids": 40,
            "interactions": 30,
            "on_screen": 10,
            "impressions": 12,
            "exposures": 1,
            "blocks": 0,
            "experiments": 0,
            "audit_entries": 0,
            "users": 1,
        }
    )

    erased: dict[str, int] = Field(description="rows of each kind; audit entries are kept without the name")


class LikeExport(BaseModel):
    """A like that stands."""

    item_id: str = Field(description="the caller's id")
    liked_at: datetime = Field(description="RFC 3339, UTC")


class SessionListenExport(BaseModel):
    """A track that was listened to in a session."""

    item_id: str | None = Field(description="the caller's id; null: the item is gone")
    listened: float = Field(description="fraction that was played, 0–1")
    timestamp: datetime = Field(description="when it happened, as reported")


class SessionExport(BaseModel):
    """A listening session that is still remembered."""

    session_id: str = Field(description="as the player named it")
    expires_at: datetime = Field(description="forgotten then, if nothing more is heard of it")
    listens: list[SessionListenExport] = Field(description="oldest first")
    given: list[str | None] = Field(description="tracks that it was answered with, oldest first; null: an item is gone")


class ExportAnswer(BaseModel):
    """Everything that is stored about a user."""

    model_config = example(
        user=STORED,
        likes=[{"item_id": "i42", "liked_at": "2026-03-14T09:30:00Z"}],
        interactions=[DONE],
        on_screen=[],
        impressions=[],
        exposures=[],
        blocks=[],
        experiments=[],
        audit_entries=[],
        sessions=[
            {
                "session_id": "s1",
                "expires_at": "2026-03-14T10:00:00Z",
                "listens": [{"item_id": "t9", "listened": 0.85, "timestamp": "2026-03-14T09:30:00Z"}],
                "given": ["t9", "t3"],
            }
        ],
        erased_at=None,
    )

    user: UserAnswer | None = Field(description="null where the user was only ever shown things")
    likes: list[LikeExport] = Field(description="those that stand, oldest first")
    interactions: list[InteractionAnswer] = Field(description="oldest first")
    on_screen: list[dict[str, Any]] = Field(description="events of the kind `impression`, oldest first")
    impressions: list[dict[str, Any]] = Field(description="pages that were answered, oldest first")
    exposures: list[dict[str, Any]] = Field(description="first times that a variant served this user")
    blocks: list[dict[str, Any]] = Field(description="items that editors keep from this user")
    experiments: list[dict[str, Any]] = Field(description="runs whose definition names this user, and the variant")
    audit_entries: list[dict[str, Any]] = Field(description="changes that name this user, oldest first")
    sessions: list[SessionExport] | None = Field(
        description="listening sessions of `POST /recommend/next` that have not expired; null: Redis could not be asked"
    )
    erased_at: datetime | None = Field(description="when an earlier life of this user was erased; null: never")


BODY = TypeAdapter(UserBody)
BODIES = TypeAdapter(Annotated[list[UserWithId], Field(max_length=1000)])
PATCH = TypeAdapter(UserPatch)


@router.put(
    "/{user_id}",
    response_model=UserAnswer,
    responses={201: {"model": UserAnswer, "description": "The user is new"}},
    dependencies=WRITE,
    summary="Create or replace a user",
    openapi_extra=documented(UserBody.model_json_schema(), {"user": EXAMPLE}),
)
def put_user(resources: ResourcesDep, user_id: UserId, raw: RawBody) -> Response:
    """A user who was erased is created anew; what the user did before the erasure stays forgotten."""
    body = parse(BODY, raw)
    with resources.engine.connect() as db, resources.ingest.views.changing(db, [user_id]):
        created = users.put(db, [body.user(user_id)])
        stored = users.get(db, user_id)
    return json_answer(stored, 201 if created else 200)


@router.get("/{user_id}", response_model=UserAnswer, dependencies=READ, summary="One user")
def get_user(resources: ResourcesDep, user_id: UserId) -> Response:
    with resources.engine.connect() as db:
        return json_answer(users.get(db, user_id))


@router.patch(
    "/{user_id}",
    response_model=UserAnswer,
    dependencies=WRITE,
    summary="Change some fields of a user",
    openapi_extra=documented(UserPatch.model_json_schema(), {"categories": {"preferred_categories": ["Western"]}}),
)
def patch_user(resources: ResourcesDep, user_id: UserId, raw: RawBody) -> Response:
    changes = parse(PATCH, raw).changes()
    with resources.engine.connect() as db, resources.ingest.views.changing(db, [user_id]):
        users.patch(db, user_id, changes)
        stored = users.get(db, user_id)
    return json_answer(stored)


@router.delete("/{user_id}", response_model=ErasureAnswer, dependencies=WRITE, summary="Forget a user")
def delete_user(resources: ResourcesDep, user_id: UserId) -> Response:
    """Erases the user's rows and cached state in one go; what is under way or sent again later is dropped. Erasing a
    user who is unknown is no error: everything counts 0. `GET /users/{user_id}/export` gives it all back first."""
    erased = erase_user(resources.engine, resources.ingest.views, user_id)
    resources.publish_versions()
    return json_answer({"erased": erased})


@router.get("/{user_id}/export", response_model=ExportAnswer, dependencies=READ, summary="All that is stored of a user")
def export(resources: ResourcesDep, user_id: UserId) -> Response:
    """`sessions` is null while Redis, which alone has them, is away."""

    def sessions() -> list[KeptSession] | None:
        try:
            return sessions_of(resources.cache_sync, user_id)
        except (RedisError, OSError):
            telemetry.DEPENDENCY_ERRORS.labels("redis").inc()
            return None

    with resources.engine.execution_options(isolation_level="REPEATABLE READ").connect() as db:
        return json_answer(export_user(db, user_id, sessions))


@router.post(
    "",
    response_model=Upserted,
    dependencies=WRITE,
    summary="Create or replace up to 1,000 users",
    openapi_extra=documented(many(UserWithId.model_json_schema()), {"users": [EXAMPLE | {"user_id": "ann"}]}),
)
def post_users(resources: ResourcesDep, raw: RawBody) -> Response:
    """All or none. An array that names a user twice is refused."""
    bodies = parse(BODIES, raw)
    ids = each_once([body.user_id for body in bodies], "user_id")
    with resources.engine.connect() as db, resources.ingest.views.changing(db, ids):
        created = users.put(db, [body.user(body.user_id) for body in bodies])
    return json_answer({"created": created, "updated": len(bodies) - created})


@router.get("", response_model=UserPage, dependencies=READ, summary="All users")
def list_users(resources: ResourcesDep, limit: PageLimit = 100, cursor: Cursor = None) -> Response:
    after = -1 if cursor is None else decode_cursor(cursor, int, "users")
    with resources.engine.connect() as db:
        found = users.page(db, after_row=after, limit=limit + 1)
    return json_answer(listing(found, limit, "row", "users"))


@router.put("/{user_id}/likes/{item_id}", response_model=LikeAnswer, dependencies=WRITE, summary="Like an item")
def like(resources: ResourcesDep, user_id: UserId, item_id: ItemId) -> Response:
    """Liking twice stores one `like`. Unknown users and items are created as by POST /events."""
    return _bring_about(resources, user_id, item_id, liked=True)


@router.delete("/{user_id}/likes/{item_id}", response_model=LikeAnswer, dependencies=WRITE, summary="Take a like back")
def unlike(resources: ResourcesDep, user_id: UserId, item_id: ItemId) -> Response:
    """The item stays seen, and is neither liked nor disliked. Nothing happens where there is no like."""
    return _bring_about(resources, user_id, item_id, liked=False)


def _bring_about(resources: ResourcesDep, user_id: str, item_id: str, *, liked: bool) -> Response:
    with resources.engine.connect() as db:
        event = deciding_event(db, user_id, item_id, liked=liked)
    if event is None:
        return json_answer({"liked": liked, "changed": False, "watermark": None})
    receipt = resources.ingest.submit_blocking([event])
    return json_answer({"liked": liked, "changed": receipt.accepted > 0, "watermark": receipt.watermark})


@router.get(
    "/{user_id}/interactions",
    response_model=InteractionPage,
    dependencies=READ,
    summary="What a user did, newest first",
)
def list_interactions(
    resources: ResourcesDep,
    user_id: UserId,
    kind: Annotated[StoredKind | None, Query(description="only of this kind")] = None,
    limit: PageLimit = 100,
    cursor: Cursor = None,
) -> Response:
    of = f"interactions {user_id} {kind}"
    after = None if cursor is None else decode_cursor(cursor, int, of)
    with resources.engine.connect() as db:
        found = interactions.page(db, user_id, kind=kind, after_seq=after, limit=limit + 1)
    return json_answer(listing(found, limit, "seq", of))
