"""Releases: which there are, which is served, and the way back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, Field

from app.api.bodies import example, json_answer
from app.api.cursors import Cursor, PageLimit, decode_cursor
from app.api.dependencies import ResourcesDep, require
from app.api.lists import listing
from app.errors import Conflict
from app.storage.keys import ApiKey
from app.storage.release_files import current_id
from app.training import releases
from models.artifacts import ArtifactError

router = APIRouter(prefix="/admin/releases", tags=["administration"])

Admin = Annotated[ApiKey, Depends(require("admin"))]
ReleaseId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="as listed")]

RELEASE = {
    "release_id": "2026-11-22T09-30-00Z-3f2a", "current": True, "created_at": "2026-11-22T09:30:41Z",
    "activated_at": "2026-11-22T09:30:42Z", "manifest": {"metrics": {"ndcg@10": 0.117}},
}  # fmt: skip


class ReleaseBody(BaseModel):
    """A set of model versions that are served together."""

    model_config = example(**RELEASE)

    release_id: str = Field(description="the UTC time of its making, and four digits")
    current: bool = Field(description="whether this is the one that is served")
    created_at: datetime = Field(description="RFC 3339, UTC")
    activated_at: datetime | None = Field(description="when it last became the current one; null: never")
    manifest: dict[str, Any] = Field(description="versions, metrics, data window")


class ReleaseList(BaseModel):
    """Releases, newest first."""

    model_config = example(items=[RELEASE], next_cursor=None)

    items: list[ReleaseBody] = Field(description="at most `limit`")
    next_cursor: str | None = Field(description="null where there is no more")


class Activated(BaseModel):
    """The release that is served from now on."""

    model_config = example(release_id="2026-11-22T09-30-00Z-3f2a", replaced="2026-11-21T09-30-00Z-91c0")

    release_id: str = Field(description="as asked for; every worker serves it within a second")
    replaced: str | None = Field(description="the release it replaced: activate that one to go back; null: none")


@router.get(
    "", response_model=ReleaseList, summary="Every release, newest first", dependencies=[Depends(require("admin"))]
)
def list_releases(resources: ResourcesDep, limit: PageLimit = 100, cursor: Cursor = None) -> Response:
    """Those that were made from this database."""
    before = None if cursor is None else decode_cursor(cursor, str, "releases")
    current = current_id(resources.settings.releases_dir)
    found = [
        row._asdict() | {"current": row.release_id == current, "key": row.release_id}
        for row in releases.listed(resources.engine, before=before, limit=limit + 1)
    ]
    return json_answer(listing(found, limit, "key", "releases"))


@router.post("/{release_id}/activate", summary="Serve this release; also the way back")
def activate(resources: ResourcesDep, admin: Admin, release_id: ReleaseId) -> Activated:
    """Loads it once to see that it answers; 409 where it is damaged or was made from another database."""
    try:
        replaced = releases.activate(resources.engine, resources.settings, release_id, actor=admin.name)
    except ArtifactError as error:
        raise Conflict(f"release {release_id!r} can't be served: {error}") from error
    resources.inventories.refresh()
    return Activated(release_id=release_id, replaced=replaced)
