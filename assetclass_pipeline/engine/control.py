"""What people ask of a running operation: pause, go on, stop, go faster or slower.

Belongs here: writing the wish down, with who and when. Does not: obeying, which its holder does
between two batches (holding.py).
"""

from typing import Literal

from psycopg import Connection, Cursor
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.audit import record_wish
from assetclass_pipeline.engine.ending import note_end
from assetclass_pipeline.engine.operations import active_id, as_uuid, get_operation
from assetclass_pipeline.errors import (
    InvalidOptionsError,
    OperationNotFoundError,
    OperationStateError,
)
from assetclass_pipeline.model.audit import Action, Actor
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.throttle import with_changes
from assetclass_pipeline.model.tuning import Tuning
from assetclass_pipeline.settings import Settings

Wish = Literal["run", "pause", "cancel"]

_ACTIONS = {
    "resume_requested": Action.RESUME_OPERATION,
    "pause_requested": Action.PAUSE_OPERATION,
    "cancel_requested": Action.CANCEL_OPERATION,
    "tuned": Action.TUNE_OPERATION,
}


def named_or_active(
    connection: Connection[TupleRow], settings: Settings, correction_id: str | None
) -> str:
    """The id that was given, or the active operation's. Raises OperationNotFoundError.

    An empty one is an id too, which no operation has: a script whose variable is empty means none.
    """
    found = active_id(connection, settings) if correction_id is None else correction_id
    if found is None:
        raise OperationNotFoundError(
            "No operation is active. `assetclass status` lists the recent ones."
        )
    return found


def ask_to_cancel(
    connection: Connection[TupleRow],
    settings: Settings,
    correction_id: str,
    *,
    by: str,
    correlation_id: str | None = None,
) -> Operation:
    """Ask an active operation to stop between two batches; a requested one ends at once.

    Raises OperationNotFoundError, and OperationStateError when it is not active.
    """
    operation = _active(connection, settings, correction_id, "cancelled")
    with transaction(connection, settings) as cursor:
        ended = cursor.execute(query("control", "cancel_requested"), _key(operation)).rowcount
        _ask(cursor, operation, "cancel", by, correlation_id)
        if ended:
            note_end(cursor, as_uuid(correction_id), Actor.of_requester(by))
    return get_operation(connection, settings, correction_id)


def ask_to_pause(
    connection: Connection[TupleRow],
    settings: Settings,
    correction_id: str,
    *,
    by: str,
    correlation_id: str | None = None,
) -> Operation:
    """Ask a running operation to stay between two batches, its rows unlocked, until resumed.

    Raises OperationNotFoundError, and OperationStateError when it does not run.
    """
    operation = _active(connection, settings, correction_id, "paused")
    with transaction(connection, settings) as cursor:
        if operation.status is Status.REQUESTED or _wish(cursor, operation) == "pause":
            state = "is paused already" if operation.status is not Status.REQUESTED else "waits"
            raise OperationStateError(
                f"Operation {correction_id} {state}; only a running one can be paused."
            )
        _ask(cursor, operation, "pause", by, correlation_id)
    return get_operation(connection, settings, correction_id)


def ask_to_resume(
    connection: Connection[TupleRow],
    settings: Settings,
    correction_id: str,
    *,
    by: str,
    correlation_id: str | None = None,
) -> Operation:
    """Let a paused operation go on.

    Raises OperationNotFoundError, and OperationStateError when it is not paused.
    """
    operation = _active(connection, settings, correction_id, "resumed")
    with transaction(connection, settings) as cursor:
        if _wish(cursor, operation) != "pause":
            raise OperationStateError(
                f"Operation {correction_id} is {operation.status} and not paused."
            )
        _ask(cursor, operation, "run", by, correlation_id)
    return get_operation(connection, settings, correction_id)


def tune(
    connection: Connection[TupleRow],
    settings: Settings,
    correction_id: str,
    changes: Tuning,
    *,
    by: str,
) -> Operation:
    """Change batch size, workers, pace or throttle limits of an active operation; heard at once.

    Raises OperationNotFoundError, OperationStateError when it is not active, InvalidOptionsError
    naming a throttle limit that cannot be used.
    """
    said = changes.model_dump(mode="json", by_alias=True, exclude_none=True)
    if not said:
        raise InvalidOptionsError(
            "Say what to change: batch size, workers, pace or a throttle limit."
        )
    with_changes(settings.throttle, changes.throttle or {})
    operation = _active(connection, settings, correction_id, "tuned")
    values = {**_key(operation), "actor": by, "tuning": Jsonb(said)}
    with transaction(connection, settings) as cursor:
        cursor.execute(query("control", "tune"), values)
        _remember(cursor, operation, "tuned", by, said)
    return get_operation(connection, settings, correction_id)


def _active(
    connection: Connection[TupleRow], settings: Settings, correction_id: str, participle: str
) -> Operation:
    operation = get_operation(connection, settings, correction_id)
    if not operation.is_active:
        raise OperationStateError(
            f"Operation {correction_id} is {operation.status}; only an active one can be "
            f"{participle}."
        )
    return operation


def _key(operation: Operation) -> dict[str, object]:
    return {"correction_id": as_uuid(operation.correction_id)}


def _wish(cursor: Cursor[TupleRow], operation: Operation) -> str:
    row = cursor.execute(query("control", "wanted"), _key(operation)).fetchone()
    return str(row[0]) if row else "run"


def _ask(
    cursor: Cursor[TupleRow],
    operation: Operation,
    wanted: Wish,
    by: str,
    correlation_id: str | None,
) -> None:
    cursor.execute(query("control", "ask"), {**_key(operation), "wanted": wanted, "wanted_by": by})
    event = {"run": "resume_requested", "pause": "pause_requested", "cancel": "cancel_requested"}
    _remember(cursor, operation, event[wanted], by, {}, correlation_id=correlation_id)


def _remember(
    cursor: Cursor[TupleRow],
    operation: Operation,
    event: str,
    by: str,
    details: dict[str, object],
    *,
    correlation_id: str | None = None,
) -> None:
    cursor.execute(
        query("control", "remember"),
        {**_key(operation), "event": event, "actor": by, "details": Jsonb(details)},
    )
    record_wish(
        cursor,
        operation.correction_id,
        _ACTIONS[event],
        by,
        details,
        correlation_id=correlation_id,
    )
