"""The web application: `create_app(settings)` builds all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import telemetry
from app.api import (
    admin_experiment_results,
    admin_experiments,
    admin_releases,
    admin_rules,
    audit,
    events,
    experiments,
    items,
    jobs,
    next_track,
    openapi,
    operations,
    problems,
    recommend,
    users,
)
from app.api.direct_route import install_shortcut
from app.api.limits import Limits
from app.api.middleware import Surroundings
from app.console import views
from app.resources import open_resources
from app.settings import Settings

DESCRIPTION = """
Recommendations routed by what is known of a user. Authentication: header `X-API-Key`, with scopes
`read`, `write`, `admin`. Errors are `application/problem+json` (RFC 9457). Times are RFC 3339 with a zone.
"""


def create_app(settings: Settings) -> FastAPI:
    """The service, ready to be run; it opens Postgres, Redis and the release when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        telemetry.configure_logging(settings.log_level)
        async with open_resources(settings) as resources:
            app.state.resources = resources
            yield

    app = FastAPI(
        title="Segue", version="0.1.0", description=DESCRIPTION, lifespan=lifespan, responses=problems.PROBLEM_RESPONSES
    )
    app.state.limits = Limits(settings.rate_limit)
    problems.install(app)
    openapi.install(app)
    routers = (  # tried in this order for each request
        events.router, recommend.router, next_track.router, operations.router, users.router, items.router,
        admin_rules.router,
        admin_releases.router, admin_experiments.router,
        admin_experiment_results.router, experiments.router, jobs.router, audit.router, views.router,
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["X-API-Key", "X-Request-ID", "Content-Type"],
            expose_headers=["X-Request-ID"],
        )
    app.add_middleware(Surroundings, max_body_bytes=settings.max_body_bytes)
    install_shortcut(app, [route for router in routers for route in router.routes])
    return app


def app_from_environment() -> FastAPI:
    """What uvicorn's workers import: settings from the environment."""
    return create_app(Settings())
