"""Training on demand, and how it goes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Path
from pydantic import BaseModel, ConfigDict, Field

from app.api.bodies import example
from app.api.dependencies import ResourcesDep, require
from app.errors import Unavailable
from app.storage import audit
from app.storage.keys import ApiKey
from app.training import queue

router = APIRouter(prefix="/admin", tags=["administration"])

Admin = Annotated[ApiKey, Depends(require("admin"))]


class TrainBody(BaseModel):
    """How to train. Everything has a default, so the body may be left out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"activate": True}]})

    activate: bool = Field(default=True, strict=True, description="serve the new release where it passes the gate")
    evaluate: bool = Field(
        default=True, strict=True, description="measure it on a temporal split first; the gate needs that"
    )
    seed: int = Field(default=0, strict=True, ge=0, le=2**31 - 1, description="of everything random in the fits")


class JobBody(BaseModel):
    """A job and how it goes."""

    model_config = example(
        job_id="train-0123456789abcdef",
        kind="train",
        status="running",
        progress=0.25,
        step="fit: als_hybrid",
        parameters={"activate": True, "evaluate": True, "seed": 0},
        result=None,
        error=None,
        created_at="2026-11-22T09:30:00Z",
        started_at="2026-11-22T09:30:01Z",
        finished_at=None,
    )

    job_id: str = Field(description="poll it at /admin/jobs/{job_id}")
    kind: Literal["train"] = Field(description="what sort of job it is")
    status: Literal["queued", "running", "succeeded", "failed"] = Field(description="how it goes")
    progress: float = Field(ge=0, le=1, description="of the current step, as a share of one")
    step: str = Field(description="what it is doing", examples=["fit: als_hybrid"])
    parameters: dict[str, Any] = Field(description="as POST /admin/train had them")
    result: dict[str, Any] | None = Field(description="when it succeeded: the release, its metrics, the gate's word")
    error: str | None = Field(description="when it failed: why")
    created_at: datetime = Field(description="when it was queued; RFC 3339, UTC")
    started_at: datetime | None = Field(description="null while it is queued")
    finished_at: datetime | None = Field(description="null until it succeeded or failed")


@router.post("/train", status_code=202, summary="Train a new release")
def train(
    resources: ResourcesDep, admin: Admin, body: Annotated[TrainBody | None, Body(examples=[{"activate": True}])] = None
) -> JobBody:
    """Runs in the worker process (`segue worker`); poll the job."""
    redis_url = resources.settings.redis_url
    if redis_url is None:
        raise Unavailable("no Redis is configured to queue jobs on")
    parameters = (body or TrainBody()).model_dump()
    job_id = queue.enqueue_training(resources.engine, redis_url, parameters=parameters)
    with resources.engine.begin() as db:
        audit.record(db, actor=admin.name, action="train", subject=f"job:{job_id}", after=parameters)
    return JobBody.model_validate(dict(queue.find_job(resources.engine, job_id)))


@router.get("/jobs/{job_id}", summary="How a job goes", dependencies=[Depends(require("admin"))])
def get_job(
    resources: ResourcesDep, job_id: Annotated[str, Path(pattern=r"^[a-z]+-[0-9a-f]{16}$", description="as given")]
) -> JobBody:
    return JobBody.model_validate(dict(queue.find_job(resources.engine, job_id)))
