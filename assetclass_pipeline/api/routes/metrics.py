"""`GET metrics`, and `/metrics` where Prometheus looks for it.

Belongs here: which of both forms is wanted. Does not: the numbers.
"""

from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response

from assetclass_pipeline.api.access import Caller, require
from assetclass_pipeline.api.authentication import Authenticator
from assetclass_pipeline.api.envelope import JSON, Envelope, answer
from assetclass_pipeline.api.watch import Watch
from assetclass_pipeline.model.metrics import Metrics
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.exposition import CONTENT_TYPE
from assetclass_pipeline.settings import Settings

router = APIRouter(tags=["watch"])
page = APIRouter(tags=["watch"])

# What Prometheus says that it understands.
_TEXT_FORMS = ("text/plain", "application/openmetrics-text")
_AS_TEXT = {CONTENT_TYPE: {"schema": {"type": "string"}}}


@router.get(
    "/metrics",
    response_model=Envelope[Metrics],
    responses={200: {"content": _AS_TEXT, "description": "JSON, or Prometheus's text"}},
)
async def metrics(
    request: Request,
    _: Annotated[Caller, require(Role.VIEWER)],
    form: Annotated[
        Literal["json", "prometheus"] | None,
        Query(alias="format", description="instead of what the header Accept says"),
    ] = None,
) -> Response:
    """How operations went, how good the data are, which limits are not met."""
    watch: Watch = request.app.state.watch
    if form == "prometheus" or (form is None and _wants_text(request)):
        text = await anyio.to_thread.run_sync(watch.exposition)
        return Response(text, media_type=CONTENT_TYPE)
    found = watch.metrics.at_once()
    if found is None:
        found = await anyio.to_thread.run_sync(watch.metrics.get)
    return answer(request, found)


def _scraper(request: Request) -> None:
    """Prometheus may come without a token where the settings say so."""
    settings: Settings = request.app.state.settings
    authenticator: Authenticator = request.app.state.authenticator
    if not settings.api.metrics_public:
        authenticator.identify(request)


@page.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": _AS_TEXT, "description": "Prometheus's text format"}},
    dependencies=[Depends(_scraper)],
)
def metrics_for_prometheus(request: Request) -> Response:
    """The same for Prometheus; with a token unless `ASSETCLASS_API__METRICS_PUBLIC` is true."""
    watch: Watch = request.app.state.watch
    return Response(watch.exposition(), media_type=CONTENT_TYPE)


def _wants_text(request: Request) -> bool:
    accepted = request.headers.get("accept", "").lower()
    return JSON not in accepted and any(form in accepted for form in _TEXT_FORMS)
