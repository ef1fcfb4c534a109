"""`GET health`: up or down for anybody, the components for callers.

Belongs here: what is shown to whom. Does not: the probes.
"""

import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated

import psycopg
from fastapi import APIRouter, Depends, Request, Response

from assetclass_pipeline.api.authentication import Authenticator, Caller
from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.envelope import Envelope, answer
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.wire import Moment, WireModel

router = APIRouter()

_UNHEALTHY = "SERVICE_UNHEALTHY"


class Component(WireModel):
    """One thing that corrections need."""

    is_healthy: bool
    message: str
    latency_ms: float


class Health(WireModel):
    """Up or down; `components` is null for callers without a token."""

    is_healthy: bool
    checked_at: Moment
    components: dict[str, Component] | None


def _caller_if_any(request: Request) -> Caller | None:
    authenticator: Authenticator = request.app.state.authenticator
    return authenticator.identify_if_it_says(request)


@router.get(
    "/health",
    response_model=Envelope[Health],
    responses={503: {"model": Envelope[Health], "description": "Something fails"}},
)
def health(request: Request, caller: Annotated[Caller | None, Depends(_caller_if_any)]) -> Response:
    """Whether everything that corrections need is there."""
    found = check(request.app.state.connections)
    shown = found if caller is not None else found.model_copy(update={"components": None})
    failing = [name for name, one in (found.components or {}).items() if not one.is_healthy]
    if found.is_healthy:
        return answer(request, shown, "Everything is there.")
    named = f": {', '.join(failing)}" if caller is not None else "; a token shows what"
    return answer(
        request,
        shown,
        f"Something fails{named}.",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        headers={"Retry-After": "5"},
        success=False,
        error_code=_UNHEALTHY,
    )


def check(connections: Connections) -> Health:
    """The components, as far as this process sees them."""
    began = time.perf_counter()
    try:
        with connections.borrowed() as connection:
            connection.execute("SELECT")
        fine, message = True, "It answers."
    except AssetClassError as error:
        fine, message = False, str(error)
    except psycopg.Error:
        fine, message = False, "It went away while it was asked."
    latency = round((time.perf_counter() - began) * 1000, 1)
    database = Component(is_healthy=fine, message=message, latency_ms=latency)
    return Health(is_healthy=fine, checked_at=datetime.now(UTC), components={"database": database})
