"""For whoever runs the service: is it alive, can it serve, how is it doing. No key is needed."""

from __future__ import annotations

import asyncio
import os
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from prometheus_client import REGISTRY as THIS_PROCESS
from pydantic import BaseModel, Field

from app.api.bodies import example
from app.api.dependencies import ResourcesDep

router = APIRouter(tags=["operations"])

METRICS_EXAMPLE = 'segue_http_requests_total{method="GET",path="/recommend",status="200"} 1027.0\n'


class Health(BaseModel):
    """The process lives."""

    model_config = example(status="ok")

    status: Literal["ok"] = Field(default="ok", description="the process answers")


class Readiness(BaseModel):
    """Whether it can serve, and what it does without."""

    model_config = example(status="ok", release="2026-11-22T09-30-00Z-3f2a", items=10506, degraded={})

    status: Literal["ok", "degraded"] = Field(description="degraded: it answers, from less than it should have")
    release: str | None = Field(
        description="the release that is served; null: none", examples=["2026-11-22T09-30-00Z-3f2a"]
    )
    items: int = Field(description="items that can be shown now")
    degraded: dict[str, str] = Field(description="what is missing, by name, and why", examples=[{}])


@router.get("/healthz", summary="The process lives")
async def healthz() -> Health:
    """Says nothing of Postgres, Redis or the release: `/readyz` does."""
    return Health()


@router.get("/readyz", summary="It can serve")
async def readyz(resources: ResourcesDep) -> Readiness:
    """200 as long as recommendations can be answered, even from the last snapshots; the body says what is missing."""
    degraded = await resources.degraded()
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
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS_EXAMPLE}}}},
)
async def metrics(resources: ResourcesDep) -> Response:
    """In Prometheus' text format, of all processes that serve together. Durations are in seconds."""
    loop = asyncio.get_running_loop()
    return Response(await loop.run_in_executor(resources.scraping, _scraped), media_type=CONTENT_TYPE_LATEST)


def _scraped() -> bytes:
    registry = THIS_PROCESS
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
