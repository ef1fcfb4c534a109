"""`status`: what goes on, what went before, and one operation as it goes on.

Belongs here: pages of the list, waiting, the stream of events. Does not: what an operation is.
"""

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal
from uuid import UUID

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from assetclass_pipeline.api.access import Caller, require
from assetclass_pipeline.api.conditional import Tagged, tagged
from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.envelope import Envelope
from assetclass_pipeline.api.recent import RecentReads
from assetclass_pipeline.api.schemas import StatusPage
from assetclass_pipeline.api.waiting import LONGEST_WAIT, list_its_end, look, wait_for_end
from assetclass_pipeline.engine.operations import Place, operation_status
from assetclass_pipeline.errors import (
    AssetClassError,
    InvalidOptionsError,
    ServerBusyError,
)
from assetclass_pipeline.model.operation import (
    EtaRange,
    Kind,
    Operation,
    OperationError,
    OperationStatus,
    Status,
)
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.model.wire import Percent, WireModel

router = APIRouter(tags=["watch"])

Viewer = Annotated[Caller, require(Role.VIEWER)]
_Id = Annotated[str, Path(max_length=100, description="correctionId of an operation")]

_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    HTTPStatus.NOT_MODIFIED: {"description": "As the caller has it already (If-None-Match)"}
}

# One event, as the fields of its lines.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["progress", "end"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "fields of status/{correctionId} that change while it runs",
        },
        "retry": {"type": "integer", "description": "milliseconds to wait before coming back"},
    },
    "required": ["data"],
}

MOST_STREAMS = 50
"""Open at once in one process."""
# Seconds. Callers come back by themselves; whose token was revoked does not.
_LONGEST_STREAM = 900.0
_HEARTBEAT = 15
_LOOK_EVERY = 1.0
_RETRY_MILLISECONDS = 2000

_streams = threading.BoundedSemaphore(MOST_STREAMS)


@router.get("/status", response_model=Envelope[StatusPage], responses=_NOT_MODIFIED)
async def status(
    request: Request,
    _: Viewer,
    include: Annotated[
        Literal["changed", "all"],
        Query(description="all: dry runs, failures and operations without changes too"),
    ] = "changed",
    limit: Annotated[int, Query(ge=1, le=100, description="operations at most")] = 20,
    cursor: Annotated[
        str | None, Query(max_length=200, description="nextCursor of the page before")
    ] = None,
) -> Response:
    """The active operation, and the newest ended ones that changed rows."""
    connections: Connections = request.app.state.connections
    older_than = None if cursor is None else _place(cursor)

    def read() -> Tagged:
        with connections.borrowed() as connection:
            found = operation_status(
                connection,
                connections.settings,
                most=limit + 1,
                include_all=include == "all",
                older_than=older_than,
            )
        return _page(found, limit)

    if older_than is not None:
        return (await anyio.to_thread.run_sync(read)).answer(request)
    # What pages, scripts and people look at all the time.
    recent: RecentReads[Tagged] = request.app.state.status_reads
    return (await recent.get((include, limit), read)).answer(request)


def _page(found: OperationStatus, limit: int) -> Tagged:
    """What was found, with one ended operation more than are shown where there are more."""
    shown = found.recent_operations[:limit]
    page = StatusPage(
        is_running=found.is_running,
        current_operation=found.current_operation,
        recent_operations=shown,
        next_cursor=_cursor(shown[-1]) if len(found.recent_operations) > limit else None,
    )
    current = found.current_operation
    if current is None:
        return tagged(page, "No operation is active.")
    return tagged(page, f"{current.kind.capitalize()} {current.correction_id} is {current.status}.")


@router.get("/status/{correction_id}", response_model=Envelope[Operation], responses=_NOT_MODIFIED)
async def status_of(
    request: Request,
    _: Viewer,
    correction_id: _Id,
    wait: Annotated[
        int, Query(ge=0, le=LONGEST_WAIT, description="seconds to wait for its end at most")
    ] = 0,
) -> Response:
    """One operation, at once or when it has ended."""
    operation = await wait_for_end(request, correction_id, wait)
    return tagged(operation, f"It is {operation.status}.").answer(request)


@router.get(
    "/status/{correction_id}/events",
    response_class=EventSourceResponse,
    responses={
        HTTPStatus.OK: {
            "description": "Server-sent events: `progress` with each change, `end` at the end",
            "content": {"text/event-stream": {"schema": _EVENT}},
        },
        HTTPStatus.NO_CONTENT: {"description": "The caller has seen the end: do not come again"},
    },
)
async def events(
    request: Request,
    _: Viewer,
    correction_id: _Id,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> Response:
    """How an operation goes on, as server-sent events until its end."""
    first = await look(request, correction_id)
    if not first.is_active and last_event_id == _event_id(_progress(first)):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    if not _streams.acquire(blocking=False):
        raise ServerBusyError(
            f"{MOST_STREAMS} streams of events are open already: ask for the status now and then."
        )
    return _Stream(
        _events(request, first, last_event_id),
        ping=_HEARTBEAT,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


class Progress(WireModel):
    """What an event tells of an operation; `status/{correctionId}` has the rest."""

    correction_id: str
    kind: Kind
    status: Status
    phase: str
    records_planned: int | None
    records_corrected: int
    records_skipped: int
    records_failed: int
    batches_done: int
    batches_total: int | None
    progress_percent: Percent
    records_per_second: float | None
    eta_seconds: EtaRange | None
    throttle: list[str]
    error: OperationError | None


class _Stream(EventSourceResponse):
    """Gives its place back however it ends, also when it was never begun."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream, then give the place back."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            _streams.release()


async def _events(
    request: Request, first: Operation, seen: str | None
) -> AsyncIterator[ServerSentEvent]:
    """An event for each change that the caller has not seen."""
    operation = first
    until = time.monotonic() + _LONGEST_STREAM
    while True:
        progress = _progress(operation)
        identity = _event_id(progress)
        if identity != seen:
            seen = identity
            if not operation.is_active:
                await list_its_end(request, operation, was_awaited=operation is not first)
            yield ServerSentEvent(
                progress.model_dump_json(by_alias=True),
                event="progress" if operation.is_active else "end",
                id=identity,
                retry=_RETRY_MILLISECONDS,
            )
        if not operation.is_active or time.monotonic() > until:
            return
        await anyio.sleep(_LOOK_EVERY)
        try:
            operation = await look(request, operation.correction_id)
        except AssetClassError:
            # The database is away: the caller comes back, and is told so.
            return


def _progress(operation: Operation) -> Progress:
    said = {name: getattr(operation, name) for name in Progress.model_fields}
    return Progress.model_validate(said | {"phase": operation.doing})


def _event_id(progress: Progress) -> str:
    """The same for the same state, in whatever process."""
    content = progress.model_dump_json(exclude={"records_per_second", "eta_seconds"})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _cursor(operation: Operation) -> str:
    place = f"{operation.requested_at.isoformat()}|{operation.correction_id}"
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        said = base64.b64decode(padded.encode(), altchars=b"-_", validate=True).decode()
        moment, _, correction_id = said.partition("|")
        return Place(datetime.fromisoformat(moment).astimezone(UTC), str(UUID(correction_id)))
    except (ValueError, binascii.Error, UnicodeError, OverflowError):
        raise InvalidOptionsError(
            "cursor: use nextCursor of the page before, as it was given"
        ) from None
