"""Releases: which there are, which is served, and the way back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from app.api.dependencies import ResourcesDep, require
from app.errors import Conflict
from app.storage.keys import ApiKey
from app.storage.release_files import current_id
from app.training import releases
from models.artifacts import ArtifactError

router = APIRouter(prefix="/admin/releases", tags=["administration"])

Admin = Annotated[ApiKey, Depends(require("admin"))]
ReleaseId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="as listed")]


class ReleaseBody(BaseModel):
    """A set of model versions that are served together."""

    release_id: str = Field(examples=["2026-11-22T09-30-00Z-3f2a"])
    current: bool = Field(description="whether this is the one that is served")
    created_at: datetime
    activated_at: datetime | None = Field(description="when it last became the current one")
    manifest: dict[str, Any] = Field(description="versions, metrics, data window")


class ReleaseList(BaseModel):
    """Releases, newest first."""

    items: list[ReleaseBody]
    next_cursor: str | None = None


class Activated(BaseModel):
    """The release that is served from now on."""

    release_id: str
    replaced: str | None = Field(description="the release it replaced: activate that one to go back")


@router.get("", summary="Every release, newest first", dependencies=[Depends(require("admin"))])
def list_releases(resources: ResourcesDep) -> ReleaseList:
    current = current_id(resources.settings.releases_dir)
    found = [
        ReleaseBody(
            release_id=row.release_id,
            current=row.release_id == current,
            created_at=row.created_at,
            activated_at=row.activated_at,
            manifest=row.manifest,
        )
        for row in releases.listed(resources.engine)
    ]
    return ReleaseList(items=found)


@router.post("/{release_id}/activate", summary="Serve this release; also the way back")
def activate(resources: ResourcesDep, admin: Admin, release_id: ReleaseId) -> Activated:
    """Loads it once to see that it answers; 409 where it is damaged or was made from another database."""
    try:
        replaced = releases.activate(resources.engine, resources.settings, release_id, actor=admin.name)
    except ArtifactError as error:
        raise Conflict(f"release {release_id!r} can't be served: {error}") from error
    resources.inventories.refresh()
    return Activated(release_id=release_id, replaced=replaced)
