"""For whoever runs the service: is it alive, can it serve, how is it doing. No key is needed."""

from __future__ import annotations

import os
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from prometheus_client import REGISTRY as THIS_PROCESS
from pydantic import BaseModel, Field

from app.api.dependencies import ResourcesDep

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether it can serve, and what it does without."""

    status: Literal["ok", "degraded"]
    release: str | None = Field(description="the release that is served", examples=["2026-11-22T09-30-00Z-3f2a"])
    items: int = Field(description="items that can be shown now")
    degraded: dict[str, str] = Field(description="what is missing, by name, and why", examples=[{}])


@router.get("/healthz", summary="The process lives")
async def healthz() -> Health:
    return Health()


@router.get("/readyz", summary="It can serve")
def readyz(resources: ResourcesDep) -> Readiness:
    """200 as long as recommendations can be answered, even from the last snapshots; the body says what is missing."""
    degraded = resources.degraded()
    inventory = resources.inventories.current
    return Readiness(
        status="degraded" if degraded else "ok",
        release=inventory.release.release_id,
        items=int(inventory.showable.sum()),
        degraded=degraded,
    )


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics() -> Response:
    registry = THIS_PROCESS
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
