"""`GET health`: up or down for anybody, the components for callers.

Belongs here: what is shown to whom. Does not: the probes.
"""

from http import HTTPStatus
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response

from assetclass_pipeline.api.authentication import Authenticator, Caller
from assetclass_pipeline.api.envelope import Envelope, answer
from assetclass_pipeline.api.watch import Watch
from assetclass_pipeline.model.wire import Moment, WireModel
from assetclass_pipeline.monitoring.health import Component

router = APIRouter(tags=["watch"])

_UNHEALTHY = "SERVICE_UNHEALTHY"
_TRY_AGAIN_AFTER = "5"


class ShownHealth(WireModel):
    """Up or down; `components` is null for callers without a token."""

    is_healthy: bool
    checked_at: Moment
    components: dict[str, Component] | None


async def _caller_if_any(request: Request) -> Caller | None:
    authenticator: Authenticator = request.app.state.authenticator
    known = authenticator.known(request)
    if known is not None:
        return authenticator.admit(request, known)
    return await anyio.to_thread.run_sync(authenticator.identify_if_it_says, request)


@router.get(
    "/health",
    response_model=Envelope[ShownHealth],
    responses={503: {"model": Envelope[ShownHealth], "description": "Something fails"}},
)
async def health(
    request: Request, caller: Annotated[Caller | None, Depends(_caller_if_any)]
) -> Response:
    """Whether all that corrections need is there; which part fails only callers are told."""
    watch: Watch = request.app.state.watch
    found = watch.health.at_once()
    if found is None:
        found = await anyio.to_thread.run_sync(watch.health.now)
    shown = ShownHealth(
        is_healthy=found.is_healthy,
        checked_at=found.checked_at,
        components=None if caller is None else found.components,
    )
    if found.is_healthy:
        return answer(request, shown, "All is well.")
    failing = "a token shows what" if caller is None else ", ".join(found.failing)
    return answer(
        request,
        shown,
        f"Something fails: {failing}.",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        headers={"Retry-After": _TRY_AGAIN_AFTER},
        success=False,
        error_code=_UNHEALTHY,
    )
