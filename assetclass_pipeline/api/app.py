"""The application: its routes, what is around them, and its description.

Belongs here: putting the parts together. Does not: any call of the API (routes/), nor serving it
(serve.py).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio.to_thread
import psycopg
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from assetclass_pipeline import __version__
from assetclass_pipeline.api import openapi
from assetclass_pipeline.api.authentication import Authenticator
from assetclass_pipeline.api.bodies import Bodies
from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.envelope import render
from assetclass_pipeline.api.framing import CORRELATION_HEADER, Framing
from assetclass_pipeline.api.limits import Limits
from assetclass_pipeline.api.oidc import Oidc
from assetclass_pipeline.api.recent import RecentReads
from assetclass_pipeline.api.refusals import Refusals
from assetclass_pipeline.api.routes import (
    alerts,
    analysis,
    audit,
    front_page,
    health,
    metrics,
    operations,
    status,
)
from assetclass_pipeline.api.watch import watching
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.settings import Settings

BASE_PATH = "/api/etl/asset-class-correction"

ROUTERS: tuple[APIRouter, ...] = (
    analysis.router,
    operations.router,
    status.router,
    audit.router,
    alerts.router,
    metrics.router,
    health.router,
)
"""Calls below the base path."""
PAGES: tuple[APIRouter, ...] = (front_page.router, openapi.router, metrics.page)
"""Whatever stands elsewhere."""

# Of web pages of other origins, where the settings let them in: whatever a call takes and answers.
_HEADERS_OF_PAGES = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
)
_HEADERS_FOR_PAGES = ("ETag", "Location", "Preference-Applied", "Retry-After")

_SPARE_THREADS = 10
_RENDERED = (AssetClassError, RequestValidationError, HTTPException, psycopg.Error)


class _Described(FastAPI):
    """An application whose document is ours."""

    def openapi(self) -> dict[str, Any]:
        """The whole document, made once."""
        return openapi.describe(self, BASE_PATH)


def create_app(
    settings: Settings,
    dsn: str,
    *,
    routers: Sequence[APIRouter] = ROUTERS,
    pages: Sequence[APIRouter] = PAGES,
) -> FastAPI:
    """The API over the database of `dsn`; nothing is connected to before a request needs it."""
    connections = Connections(dsn, settings)
    limits = Limits(settings.api)
    refusals = Refusals(connections)
    provider = None if settings.api.oidc is None else Oidc(settings.api.oidc)
    app = _Described(
        title="AssetClass pipeline",
        version=__version__,
        summary="Measures, corrects, proves and undoes asset_class values",
        # Its pages load their scripts from a host elsewhere; ours is in openapi.py.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        exception_handlers=dict.fromkeys(_RENDERED, _refuse),
    )
    app.state.settings = settings
    app.state.connections = connections
    app.state.authenticator = Authenticator(connections, limits, refusals, provider)
    app.state.refusals = refusals
    app.state.status_reads = RecentReads(settings.api.status_age)
    for router in routers:
        app.include_router(router, prefix=BASE_PATH, responses=openapi.REFUSALS)
    for page in pages:
        app.include_router(page, responses=openapi.REFUSALS)
    # The last one added is the outermost.
    app.add_middleware(Bodies, limit=settings.api.body_limit, timeout=settings.api.read_timeout)
    if settings.api.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.api.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=[*_HEADERS_OF_PAGES, CORRELATION_HEADER],
            expose_headers=[*_HEADERS_FOR_PAGES, CORRELATION_HEADER],
        )
    app.add_middleware(
        Framing,
        limits=limits,
        refusals=refusals,
        most=settings.api.most_requests,
        header_limit=settings.api.header_limit,
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    refusals: Refusals = app.state.refusals
    connections: Connections = app.state.connections
    # One for each open request: with fewer, those that have a connection would wait for a thread
    # that another one holds while it waits for a connection.
    threads = anyio.to_thread.current_default_thread_limiter()
    threads.total_tokens = settings.api.most_requests + _SPARE_THREADS
    writing = asyncio.create_task(refusals.keep_writing())
    with watching(connections) as app.state.watch:
        try:
            yield
        finally:
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing
            with suppress(AssetClassError, psycopg.Error):
                await asyncio.to_thread(refusals.write, everything=True)
            await asyncio.to_thread(connections.close)


async def _refuse(request: Request, error: Exception) -> Response:
    rendered = render(error)
    if rendered.data is None and rendered.code == "INTERNAL_ERROR":
        # The frame logs it and answers.
        raise error
    return rendered.response(request)


def describe(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document, without serving anything."""
    return create_app(settings, "").openapi()
