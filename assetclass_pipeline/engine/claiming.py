"""Claiming an operation: one is active, whoever asks; a dead owner blocks nobody.

Belongs here: create, resume, take over, refuse. Does not: what its holder does then (holding.py).
"""

import os
import socket
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import psycopg
from psycopg import Connection, errors
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.silence import is_abandoned, silence_limits
from assetclass_pipeline.errors import (
    OperationFencedError,
    OperationInProgressError,
    OperationStateError,
)
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.operation import ACTIVE, RESUMABLE, Kind, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.settings import Settings

# A claim of one of these is the next process of the same run.
_GOING_ON = {Status.RUNNING, Status.PAUSED}
# Whoever claims one of these goes on with what somebody or something ended.
_CUT_OFF = RESUMABLE - {Status.PLANNED}


@dataclass(frozen=True)
class CorrectionRequest:
    """Who asks for which correction; `stop_at` is when its window closes."""

    correction_id: str
    options: CorrectionOptions
    scope: TimeRange = EVERYTHING
    requested_by: str = ""
    reason: str | None = None
    ticket: str | None = None
    run_id: str | None = None
    retry_of: str | None = None
    stop_at: datetime | None = None


def holder_name() -> str:
    """Which process holds an operation, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


def fenced(correction_id: UUID) -> OperationFencedError:
    """The error of a process that no longer owns the operation."""
    return OperationFencedError(
        f"Operation {correction_id} was ended or taken over by another process; this one writes "
        "no more. `assetclass status` tells who works on it."
    )


def claim(
    connection: Connection[TupleRow],
    settings: Settings,
    request: CorrectionRequest,
    *,
    again: bool = False,
) -> int:
    """Make the operation of `request` ours (create, resume or take over); returns its new epoch.

    With `again` an earlier try of this process may have done so, whose answer was lost.

    Raises OperationInProgressError naming the active operation, and OperationStateError.
    """
    key = as_uuid(request.correction_id)
    _interrupt_abandoned(connection, settings)
    by_key = {"correction_id": key}
    try:
        with transaction(connection, settings) as cursor:
            row = cursor.execute(query("operation", "lock"), by_key).fetchone()
            if row is None:
                cursor.execute(query("operation", "create"), _creation(key, request))
            else:
                _check_claimable(cursor, key, Status(row[0]), again=again)
                _check_same_kind(key, request, begun_dry=row[1])
            claimed = cursor.execute(
                query("operation", "claim"),
                {**by_key, "run_id": request.run_id, "stop_at": request.stop_at},
            ).fetchone()
            epoch = int(claimed[0]) if claimed else 0
            if row is None or Status(row[0]) not in _GOING_ON:
                # Picked up from the step before, what was asked of it meanwhile holds.
                cursor.execute(
                    query("control", "ask"),
                    {**by_key, "wanted": "run", "wanted_by": request.requested_by},
                )
            cursor.execute(query("control", "add_gap"), by_key)
            # The claim is the first heartbeat: one that died right after it would otherwise never
            # count as silent, and a resumed one would look silent until it beats.
            cursor.execute(
                query("operation", "beat"),
                {**by_key, "epoch": epoch, "holder": holder_name(), "pacing": None, "throttle": []},
            )
            if row is not None and Status(row[0]) in _CUT_OFF:
                _tell_who_resumed(cursor, key, request.requested_by, was=row[0])
            return epoch
    except errors.UniqueViolation:
        raise _in_progress(connection, settings) from None


def _tell_who_resumed(
    cursor: psycopg.Cursor[TupleRow], key: UUID, requested_by: str, *, was: str
) -> None:
    cursor.execute(
        query("control", "remember"),
        {
            "correction_id": key,
            "event": "resumed",
            "actor": requested_by or holder_name(),
            "details": Jsonb({"from": was, "holder": holder_name()}),
        },
    )


def _creation(key: UUID, request: CorrectionRequest) -> dict[str, object]:
    return {
        "correction_id": key,
        "kind": Kind.CORRECTION.value,
        "status": Status.REQUESTED.value,
        "dry_run": request.options.dry_run,
        "options": Jsonb(request.options.model_dump(mode="json", by_alias=True)),
        "range_start": request.scope.start,
        "range_end": request.scope.end,
        "requested_by": request.requested_by,
        "reason": request.reason,
        "ticket": request.ticket,
        "run_id": request.run_id,
        "retry_of": request.retry_of,
    }


def _check_claimable(
    cursor: psycopg.Cursor[TupleRow], key: UUID, status: Status, *, again: bool
) -> None:
    if status in RESUMABLE or status is Status.REQUESTED:
        return
    if status not in ACTIVE:
        raise OperationStateError(
            f"Operation {key} is {status} and cannot be run again; start a new one."
        )
    age = cursor.execute(query("operation", "heartbeat_age"), {"correction_id": key}).fetchone()
    if age is not None and not (again and age[1] == holder_name()):
        raise OperationInProgressError(
            f"Operation {key} is already running in another process (heard of {age[0]:.0f} s ago).",
            correction_id=str(key),
        )


def _check_same_kind(key: UUID, request: CorrectionRequest, *, begun_dry: bool) -> None:
    """A resume goes on with the options of the beginning; of these one must not surprise."""
    if request.options.dry_run is not begun_dry:
        begun, asked = ("a dry run", "a real one") if begun_dry else ("a real run", "a dry one")
        raise OperationStateError(
            f"Operation {key} was begun as {begun} and cannot go on as {asked}; start a new one."
        )


def _interrupt_abandoned(connection: Connection[TupleRow], settings: Settings) -> None:
    statement = query("operation", "interrupt_abandoned", is_abandoned=is_abandoned())
    with transaction(connection, settings) as cursor:
        cursor.execute(statement, silence_limits(settings))


def refuse_while_active(connection: Connection[TupleRow], settings: Settings) -> None:
    """Return when no operation is active; one whose process is gone is ended first.

    For surfaces that refuse before they start anything; the proof is the claim. Raises
    OperationInProgressError naming the active one.
    """
    _interrupt_abandoned(connection, settings)
    with transaction(connection, settings, read_only=True) as cursor:
        active = cursor.execute(query("operation", "active")).fetchone()
    if active is not None:
        raise _in_progress(connection, settings)


def _in_progress(connection: Connection[TupleRow], settings: Settings) -> OperationInProgressError:
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "active")).fetchone()
    active = str(row[0]) if row else "unknown"
    return OperationInProgressError(
        f"Operation {active} is active, and only one may be. Wait for it "
        f"(`assetclass status {active}`) or cancel it.",
        correction_id=active,
    )
