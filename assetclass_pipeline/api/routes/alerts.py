"""`GET alerts`, `POST alerts/{alert_id}/acknowledge`.

Belongs here: what may be asked and said. Does not: the life of an alert.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, StringConstraints

from assetclass_pipeline.api.access import Caller, require
from assetclass_pipeline.api.connections import DatabaseConnection
from assetclass_pipeline.api.envelope import Envelope, Refusal, answer
from assetclass_pipeline.model.alert import Alert
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.model.wire import WireModel
from assetclass_pipeline.monitoring import alert_store
from assetclass_pipeline.settings import Settings

router = APIRouter(tags=["watch"])


class Alerts(WireModel):
    """Those that are not over, the most severe first, then those that are, the newest first."""

    alerts: list[Alert]


class Acknowledgement(WireModel):
    """What is said when somebody takes an alert on."""

    note: Annotated[str, StringConstraints(min_length=1, max_length=1000)] | None = Field(
        None, description="for whoever looks at the alert next", examples=["Looking into it."]
    )


@router.get("/alerts", response_model=Envelope[Alerts])
def alerts(
    request: Request,
    _: Annotated[Caller, require(Role.VIEWER)],
    connection: DatabaseConnection,
    limit: Annotated[int, Query(ge=1, le=500, description="so many at most")] = 50,
    resolved: Annotated[bool, Query(description="also those that are over")] = True,
) -> Response:
    """What people must know of, and what they had to know of lately."""
    settings: Settings = request.app.state.settings
    found = alert_store.list_alerts(connection, settings, most=limit, include_resolved=resolved)
    unresolved = sum(alert.is_unresolved for alert in found)
    return answer(request, Alerts(alerts=found), f"{unresolved} of them are not over.")


@router.post(
    "/alerts/{alert_id}/acknowledge",
    response_model=Envelope[Alert],
    responses={409: {"model": Refusal, "description": "It is acknowledged already, or over"}},
)
def acknowledge(
    request: Request,
    caller: Annotated[Caller, require(Role.OPERATOR)],
    connection: DatabaseConnection,
    alert_id: int,
    said: Acknowledgement | None = None,
) -> Response:
    """Take an alert on: nobody is reminded of it any more, until it is reopened."""
    settings: Settings = request.app.state.settings
    found = alert_store.acknowledge(
        connection,
        settings,
        alert_id,
        by=caller.requested_by,
        note=None if said is None else said.note,
    )
    return answer(request, found, f"Alert {alert_id} is yours.")
