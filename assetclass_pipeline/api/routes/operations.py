"""`execute`, `rollback`, `pause`, `resume`, `cancel`: what is asked of operations.

Belongs here: writing down what is asked, and the 202. Does not: launching it, which the sensor
`operation_requests` does, nor obeying it, which the operation does.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import anyio.to_thread
from fastapi import APIRouter, Body, Depends, Header, Request, Response
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.api.access import Caller, require, require_own
from assetclass_pipeline.api.conditional import Tagged
from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.envelope import Envelope, answer
from assetclass_pipeline.api.recent import RecentReads
from assetclass_pipeline.api.schemas import (
    Accepted,
    CorrectionBody,
    OperationBody,
    RollbackBody,
)
from assetclass_pipeline.api.waiting import preferred_wait, wait_for_end
from assetclass_pipeline.engine.audit import Asker, record_refusal
from assetclass_pipeline.engine.claiming import CorrectionRequest, end_abandoned
from assetclass_pipeline.engine.control import ask_to_cancel, ask_to_pause, named_or_active
from assetclass_pipeline.engine.operations import get_operation
from assetclass_pipeline.engine.requests import (
    IdempotencyKey,
    Requested,
    request_correction,
    request_rollback,
)
from assetclass_pipeline.engine.requests import resume as ask_to_resume
from assetclass_pipeline.engine.rollback import RollbackRequest
from assetclass_pipeline.errors import AssetClassError, OperationNotFoundError
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.model.operation import Kind, Operation
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import Settings

router = APIRouter(tags=["operate"])

Operator = Annotated[Caller, require(Role.OPERATOR)]
_Connection = Connection[TupleRow]
Result = TypeVar("Result")

_CONFLICT = "Another operation is active (data.correctionId names it), or this cannot be done now"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    HTTPStatus.CONFLICT: {"model": Envelope[dict[str, Any]], "description": _CONFLICT},
}
_GONE: dict[int | str, dict[str, Any]] = {
    HTTPStatus.GONE: {
        "model": Envelope[dict[str, Any]],
        "description": "The backup of the correction has expired",
    },
}


def _prefer(
    prefer: Annotated[
        str | None,
        Header(
            max_length=200,
            description="`wait=N`: answer when the operation has ended, after N seconds at most",
            examples=["wait=30"],
        ),
    ] = None,
) -> str | None:
    return prefer


def _idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            pattern=r"^[\x21-\x7e]+$",
            description="the same key with the same body asks once, however often it is sent",
            examples=["nightly-2026-03-01"],
        ),
    ] = None,
) -> str | None:
    return idempotency_key


_Key = Annotated[str | None, Depends(_idempotency_key)]
_Prefer = Annotated[str | None, Depends(_prefer)]


@router.post(
    "/execute",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Envelope[Accepted],
    responses=_ANSWERS,
)
async def execute(
    request: Request,
    caller: Operator,
    key: _Key,
    _: _Prefer,
    body: Annotated[CorrectionBody | None, Body()] = None,
) -> Response:
    """Ask for a correction; it begins within seconds, as a run of Dagster's."""
    said = body or CorrectionBody()
    wanted = CorrectionRequest(
        str(uuid4()),
        said.options,
        requested_by=caller.requested_by,
        reason=said.reason,
        ticket=said.ticket,
    )

    def ask(connection: _Connection, settings: Settings) -> Requested:
        return request_correction(
            connection,
            settings,
            wanted,
            correlation_id=caller.correlation_id,
            idempotency=_key_of(caller, key),
        )

    return await _accepted(request, await _do(request, ask))


@router.post(
    "/rollback",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Envelope[Accepted],
    responses=_ANSWERS | _GONE,
)
async def rollback(
    request: Request,
    caller: Operator,
    key: _Key,
    _: _Prefer,
    body: Annotated[RollbackBody, Body()],
) -> Response:
    """Ask to undo a correction; operators their own ones, administrators any."""

    def ask(connection: _Connection, settings: Settings) -> Requested:
        # What does not exist belongs to nobody; the engine says so.
        with suppress(OperationNotFoundError):
            undone = get_operation(connection, settings, body.correction_id)
            require_own(request, caller, undone.requested_by, f"Operation {body.correction_id}")
        wanted = RollbackRequest(
            str(uuid4()),
            body.correction_id,
            body.options,
            requested_by=caller.requested_by,
            reason=body.reason,
            ticket=body.ticket,
        )
        return request_rollback(
            connection,
            settings,
            wanted,
            correlation_id=caller.correlation_id,
            idempotency=_key_of(caller, key),
        )

    return await _accepted(request, await _do(request, ask))


@router.post(
    "/pause",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Envelope[Operation],
    responses=_ANSWERS,
)
async def pause(
    request: Request, caller: Operator, body: Annotated[OperationBody | None, Body()] = None
) -> Response:
    """Let a running operation stay between two batches, with no row locked."""
    return await _wish(
        request,
        caller,
        body,
        _Wish(ask_to_pause, Action.PAUSE_OPERATION, "It stays between two batches."),
    )


@router.post(
    "/resume",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Envelope[Operation],
    responses=_ANSWERS | _GONE,
)
async def resume(
    request: Request, caller: Operator, body: Annotated[OperationBody | None, Body()] = None
) -> Response:
    """Let a paused operation go on, or one that was cancelled, failed or cut off."""
    return await _wish(
        request,
        caller,
        body,
        _Wish(ask_to_resume, Action.RESUME_OPERATION, "It goes on where it stopped."),
    )


@router.post(
    "/cancel",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Envelope[Operation],
    responses=_ANSWERS,
)
async def cancel(
    request: Request, caller: Operator, body: Annotated[OperationBody | None, Body()] = None
) -> Response:
    """Stop an active operation between two batches; what is committed stays."""
    return await _wish(
        request,
        caller,
        body,
        _Wish(ask_to_cancel, Action.CANCEL_OPERATION, "It stops; what is committed stays."),
    )


def _key_of(caller: Caller, key: str | None) -> IdempotencyKey | None:
    return None if key is None else IdempotencyKey(caller.requested_by, key)


async def _do(request: Request, step: Callable[[_Connection, Settings], Result]) -> Result:
    """A step on a connection of the pool, in a thread; done when every `status` shows it."""
    connections: Connections = request.app.state.connections
    recent: RecentReads[Tagged] = request.app.state.status_reads

    def work() -> Result:
        with connections.borrowed() as connection:
            return step(connection, connections.settings)

    try:
        return await anyio.to_thread.run_sync(work)
    finally:
        # Who is refused may have ended one that nobody worked on any more.
        await recent.seen_by_all()


async def _accepted(request: Request, requested: Requested) -> Response:
    """202, at once or when the operation has ended, as the caller prefers."""
    wait = preferred_wait(request)
    operation = await wait_for_end(request, requested.correction_id, wait or 0)
    url = f"{request.url.path.rpartition('/')[0]}/status/{operation.correction_id}"
    headers = {"Location": url}
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
    what = "correction" if operation.kind is Kind.CORRECTION else "rollback"
    said = (
        f"The {what} is {operation.status}."
        if requested.is_new
        else (f"The same key asked for this {what} before; it is {operation.status}.")
    )
    data = Accepted(
        correction_id=operation.correction_id,
        kind=operation.kind,
        status=operation.status,
        status_url=url,
    )
    return answer(request, data, said, status=HTTPStatus.ACCEPTED, headers=headers)


@dataclass(frozen=True)
class _Wish:
    """What is asked of an operation, and what is answered."""

    ask: Callable[..., Operation]
    action: Action
    said: str


async def _wish(
    request: Request, caller: Caller, body: OperationBody | None, wish: _Wish
) -> Response:
    named = body.correction_id if body is not None else None
    by, correlation_id = caller.requested_by, caller.correlation_id

    def step(connection: _Connection, settings: Settings) -> Operation:
        # One whose process died is not active any more; nobody would hear what is asked of it.
        end_abandoned(connection, settings)
        try:
            found = named_or_active(connection, settings, named)
            return wish.ask(connection, settings, found, by=by, correlation_id=correlation_id)
        except AssetClassError as error:
            asker = Asker(by, correlation_id=correlation_id)
            record_refusal(connection, settings, error, asker, wish.action, asked=named)
            raise

    operation = await _do(request, step)
    url = f"{request.url.path.rpartition('/')[0]}/status/{operation.correction_id}"
    return answer(
        request, operation, wish.said, status=HTTPStatus.ACCEPTED, headers={"Location": url}
    )
