"""Claiming an operation: one is active, whoever asks; a dead owner blocks nobody.

Belongs here: create, resume, take over, refuse. Does not: what its holder does then (holding.py).
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import psycopg
from psycopg import Connection, Cursor, errors
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.audit import Asks, record_claim
from assetclass_pipeline.engine.ending import note_end, note_going_on
from assetclass_pipeline.engine.operations import as_uuid
from assetclass_pipeline.engine.silence import is_abandoned, silence_limits
from assetclass_pipeline.errors import (
    OperationFencedError,
    OperationInProgressError,
    OperationStateError,
)
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.months import EVERYTHING, TimeRange
from assetclass_pipeline.model.operation import ACTIVE, RESUMABLE, Kind, Status
from assetclass_pipeline.model.options import CorrectionOptions, RetryOptions
from assetclass_pipeline.settings import Settings

# A claim of one of these is the next process of the same run.
_GOING_ON = {Status.RUNNING, Status.PAUSED}
# Whoever claims one of these goes on with what somebody or something ended.
_CUT_OFF = RESUMABLE - {Status.PLANNED}


class OperationOptions(Protocol):
    """What a claim and its holder need of the options of an operation of any kind."""

    @property
    def dry_run(self) -> bool:
        """Whether it changes nothing."""

    @property
    def timeout(self) -> timedelta:
        """Its longest duration."""

    @property
    def retry(self) -> RetryOptions | None:
        """Tries of a step; None means those of the settings."""

    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        """As JSON."""


class OperationRequest(Asks, Protocol):
    """Who asks for which operation; `rollback_of` is what a rollback undoes."""

    @property
    def kind(self) -> Kind:
        """What it does."""

    @property
    def correction_id(self) -> str:
        """The operation's own id, whatever its kind."""

    @property
    def options(self) -> OperationOptions:
        """How it is done."""

    @property
    def scope(self) -> TimeRange:
        """The rows that it is about."""

    @property
    def retry_of(self) -> str | None:
        """The operation that is done once more."""

    @property
    def rollback_of(self) -> str | None:
        """The correction that a rollback undoes."""

    @property
    def stop_at(self) -> datetime | None:
        """When its window closes."""

    @property
    def only_while_active(self) -> bool:
        """Whether it takes up what was asked for before, and nothing where that has ended."""


Check = Callable[[Cursor[TupleRow]], None]
"""Raises a typed error where an operation may not begin, in the transaction that claims it."""


@dataclass(frozen=True)
class CorrectionRequest:
    """Who asks for which correction; `stop_at` is when its window closes.

    With `only_while_active` it takes up what was asked for before, unless that was cancelled since.
    """

    correction_id: str
    options: CorrectionOptions
    scope: TimeRange = EVERYTHING
    requested_by: str = ""
    reason: str | None = None
    ticket: str | None = None
    run_id: str | None = None
    retry_of: str | None = None
    stop_at: datetime | None = None
    only_while_active: bool = False

    @property
    def kind(self) -> Kind:
        """What it does."""
        return Kind.CORRECTION

    @property
    def rollback_of(self) -> None:
        """A correction undoes none."""
        return


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
    request: OperationRequest,
    *,
    again: bool = False,
    check: Check | None = None,
) -> int:
    """Make the operation of `request` ours (create, resume or take over); returns its new epoch.

    With `again` an earlier try of this process may have done so, whose answer was lost. `check` is
    asked first, in the same transaction.

    Raises OperationInProgressError naming the active operation, OperationStateError, and what
    `check` raises.
    """
    key = as_uuid(request.correction_id)
    end_abandoned(connection, settings)
    by_key = {"correction_id": key}
    try:
        with transaction(connection, settings) as cursor:
            row = cursor.execute(query("operation", "lock"), by_key).fetchone()
            if request.only_while_active and (row is None or Status(row[0]) not in ACTIVE):
                raise _ended_meanwhile(key, None if row is None else row[0])
            if row is not None:
                _check_same_kind(key, request, begun_dry=row[1], kind=row[2], rollback_of=row[3])
                check_claimable(cursor, key, Status(row[0]), again=again)
            if check is not None:
                check(cursor)
            if row is None:
                cursor.execute(query("operation", "create"), creation_of(key, request))
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
            note_going_on(cursor, key)
            # The claim is the first heartbeat: one that died right after it would otherwise never
            # count as silent, and a resumed one would look silent until it beats.
            cursor.execute(
                query("operation", "beat"),
                {**by_key, "epoch": epoch, "holder": holder_name(), "pacing": None, "throttle": []},
            )
            if row is not None and Status(row[0]) in _CUT_OFF:
                _tell_who_resumed(cursor, key, request.requested_by, was=row[0])
            before = None if row is None else Status(row[0])
            record_claim(cursor, key, request, before=before, epoch=epoch)
            return epoch
    except errors.UniqueViolation:
        raise in_progress(connection, settings) from None


def _ended_meanwhile(key: UUID, status: str | None) -> OperationStateError:
    return OperationStateError(
        f"What was asked for is over: operation {key} is {status or 'unknown'}. This run changed "
        f"nothing; `assetclass resume {key}` goes on with it where that can be."
    )


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


def creation_of(key: UUID, request: OperationRequest) -> dict[str, object]:
    """What the statement `create` is bound to: the row of an operation that is asked for."""
    return {
        "correction_id": key,
        "kind": request.kind.value,
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
        "rollback_of": None if request.rollback_of is None else as_uuid(request.rollback_of),
    }


def check_claimable(
    cursor: psycopg.Cursor[TupleRow], key: UUID, status: Status, *, again: bool = False
) -> None:
    """Return when an operation of this `status` may go on.

    Raises OperationStateError, and OperationInProgressError where a process works on it.
    """
    if status in RESUMABLE or status is Status.REQUESTED:
        _check_not_undone(cursor, key)
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


def _check_not_undone(cursor: psycopg.Cursor[TupleRow], key: UUID) -> None:
    """What a rollback plans to restore must not grow behind its back."""
    row = cursor.execute(query("operation", "begun_rollback"), {"correction_id": key}).fetchone()
    if row is not None:
        raise OperationStateError(
            f"Operation {key} cannot go on: its rollback {row[0]} has begun. For the rows that are "
            "left start a new correction."
        )


def _check_same_kind(
    key: UUID, request: OperationRequest, *, begun_dry: bool, kind: str, rollback_of: UUID | None
) -> None:
    """A resume goes on with the options of the beginning; of these some must not surprise."""
    if request.kind is not Kind(kind):
        raise OperationStateError(
            f"Operation {key} is a {kind}, and not a {request.kind}: `assetclass status {key}` "
            "tells about it."
        )
    if request.rollback_of is not None and rollback_of != as_uuid(request.rollback_of):
        raise OperationStateError(
            f"Operation {key} is a rollback of {rollback_of}, and not of {request.rollback_of}; "
            "start a new one."
        )
    if request.options.dry_run is not begun_dry:
        begun, asked = ("a dry run", "a real one") if begun_dry else ("a real run", "a dry one")
        raise OperationStateError(
            f"Operation {key} was begun as {begun} and cannot go on as {asked}; start a new one."
        )


def end_abandoned(connection: Connection[TupleRow], settings: Settings) -> None:
    """An operation whose process is gone ends as interrupted, so that it keeps nobody out."""
    statement = query("operation", "interrupt_abandoned", is_abandoned=is_abandoned())
    with transaction(connection, settings) as cursor:
        for (correction_id,) in cursor.execute(statement, silence_limits(settings)).fetchall():
            note_end(cursor, as_uuid(correction_id), Actor.system())


def refuse_while_active(connection: Connection[TupleRow], settings: Settings) -> None:
    """Return when no operation is active; one whose process is gone is ended first.

    For surfaces that refuse before they start anything; the proof is the claim. Raises
    OperationInProgressError naming the active one.
    """
    end_abandoned(connection, settings)
    with transaction(connection, settings, read_only=True) as cursor:
        active = cursor.execute(query("operation", "active")).fetchone()
    if active is not None:
        raise in_progress(connection, settings)


def in_progress(connection: Connection[TupleRow], settings: Settings) -> OperationInProgressError:
    """The error that names the active operation."""
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "active")).fetchone()
    active = str(row[0]) if row else "unknown"
    return OperationInProgressError(
        f"Operation {active} is active, and only one may be. Wait for it "
        f"(`assetclass status {active}`) or cancel it.",
        correction_id=active,
    )
