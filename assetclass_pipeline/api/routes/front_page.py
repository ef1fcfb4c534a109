"""`GET /`: the state of everything for a browser, read only, with nothing loaded from elsewhere.

Belongs here: what the page shows, and how a browser logs in. Does not: how it looks
(templates/status.html).
"""

import base64
import binascii
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from html import escape
from typing import Any

import psycopg
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.api.authentication import Authenticator
from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.envelope import render
from assetclass_pipeline.engine.analysis import quality_history
from assetclass_pipeline.engine.operations import operation_status
from assetclass_pipeline.errors import AssetClassError, ForbiddenError, UnauthorizedError
from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.model.operation import EtaRange, Kind, Operation, Status
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.alert_store import list_alerts
from assetclass_pipeline.settings import Settings

router = APIRouter()

_MOST_OPERATIONS = 15
_MOST_ALERTS = 20
# Seconds: soon while something goes on.
_REFRESH_WHILE_RUNNING = 3
_REFRESH = 15

_SCORES = (
    ("completeness", "completeness", "completeness"),
    ("integrity", "integrity", "integrity"),
    ("orphaned", "orphaned", "orphaned_percent"),
    ("quality score", "quality_score", "quality_score"),
)
_TONES = {
    Status.SUCCEEDED: "good",
    Status.FAILED: "bad",
    Status.TIMED_OUT: "bad",
    Status.INTERRUPTED: "warn",
    Status.CANCELLED: "warn",
    Status.PAUSED: "warn",
}
_SEVERITIES = {Severity.HIGH: "bad", Severity.MEDIUM: "warn", Severity.LOW: "dim"}


@router.get("/", include_in_schema=False)
def page(request: Request) -> HTMLResponse:
    """The page, for viewers; a browser asks for a token as the password."""
    connections: Connections = request.app.state.connections
    try:
        _require_viewer(request)
        with connections.borrowed() as connection:
            content = _page(connection, connections.settings)
    except (AssetClassError, psycopg.OperationalError) as error:
        return _refused(error)
    return HTMLResponse(content)


def _require_viewer(request: Request) -> None:
    """Return when the caller may look. Raises UnauthorizedError and the like.

    Only here a token may come as the password of HTTP Basic, which is what a browser can ask for:
    it is sent to nothing that changes anything.
    """
    authenticator: Authenticator = request.app.state.authenticator
    caller = authenticator.identify(_with_bearer(request))
    if not caller.role.includes(Role.VIEWER):
        raise ForbiddenError(f"This needs the role {Role.VIEWER}.")


def _with_bearer(request: Request) -> Request:
    scheme, _, said = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return request
    try:
        login = base64.b64decode(said.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        login = ""
    bearer = f"Bearer {login.partition(':')[2]}".encode("latin-1", errors="replace")
    others = [header for header in request.scope["headers"] if header[0] != b"authorization"]
    return Request({**request.scope, "headers": [*others, (b"authorization", bearer)]})


def _refused(error: AssetClassError | psycopg.OperationalError) -> HTMLResponse:
    rendered = render(error)
    headers = dict(rendered.headers)
    said = rendered.message
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = 'Basic realm="AssetClass pipeline", charset="UTF-8"'
        said = (
            "This page needs a token: any user name, and the token as the password. `assetclass "
            "tokens create --name NAME --role viewer` makes one."
        )
    # What passes by itself leaves no dead page on the screen of whoever watches.
    again = headers.get("Retry-After")
    refresh = "" if again is None else f'<meta http-equiv="refresh" content="{again}">'
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8">{refresh}'
        f'<meta name="color-scheme" content="light dark"><title>AssetClass pipeline</title>'
        f'<p style="font:16px/1.5 system-ui;margin:3rem auto;max-width:40rem">{escape(said)}</p>',
        rendered.status,
        headers,
    )


def _page(connection: Connection[TupleRow], settings: Settings) -> str:
    status = operation_status(connection, settings, most=_MOST_OPERATIONS, include_all=True)
    measured = quality_history(connection, settings, most=1)
    current = status.current_operation
    return (
        _environment()
        .get_template("status.html")
        .render(
            title=_title(current),
            refresh=_REFRESH if current is None else _REFRESH_WHILE_RUNNING,
            now=datetime.now(UTC),
            current=current,
            recent=status.recent_operations,
            alerts=list_alerts(connection, settings, most=_MOST_ALERTS, include_resolved=False),
            measured_at=measured[0].measured_at if measured else None,
            total_records=measured[0].total_records if measured else None,
            scores=[
                (shown, settings.thresholds.limits(limit).judge(getattr(measured[0], name)))
                for shown, limit, name in _SCORES
            ]
            if measured
            else [],
        )
    )


def _title(current: Operation | None) -> str:
    if current is None:
        return "AssetClass pipeline"
    return f"{current.progress_percent:.0f} % {current.status}: AssetClass pipeline"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("assetclass_pipeline.api"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    return environment


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _eta(eta: EtaRange | None) -> str:
    return "-" if eta is None else f"{_duration(eta.low)} to {_duration(eta.high)}"


def _kind(operation: Operation) -> str:
    return f"{operation.kind}{', dry run' if operation.dry_run else ''}"


def _done_word(operation: Operation) -> str:
    return "restored" if operation.kind is Kind.ROLLBACK else "corrected"


_FILTERS: dict[str, Callable[..., Any]] = {
    "moment": _moment,
    "minute": _minute,
    "number": _number,
    "duration": _duration,
    "eta": _eta,
    "kind": _kind,
    "done_word": _done_word,
    "tone": lambda operation: _TONES.get(operation.status, "dim"),
    "severity": lambda severity: _SEVERITIES[severity],
}
