"""Operations as their readers see them, and the polite requests to a running one.

Belongs here: status, history, proof, asking to cancel. Does not: claiming and ending an operation
(holding.py), and what it does in between.
"""

from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import Condition
from assetclass_pipeline.errors import OperationNotFoundError, OperationStateError
from assetclass_pipeline.model.operation import (
    ACTIVE,
    RESUMABLE,
    Change,
    Operation,
    OperationError,
    OperationStatus,
    Phase,
    Proof,
    SkipReason,
    Status,
    progress_percent,
    remaining_seconds,
)
from assetclass_pipeline.settings import Settings

MOST_CHANGES = 1000
_NEVER_PLANNED = {SkipReason.MISMATCHED_NOT_OVERWRITTEN, SkipReason.ARRIVED_LATE}
_NO_SUCH = "No operation has the correctionId {}. `assetclass status` lists the recent ones."


def get_operation(
    connection: Connection[TupleRow], settings: Settings, correction_id: str
) -> Operation:
    """One operation with its change summary. Raises OperationNotFoundError."""
    chosen = Condition(query("operation", "one"), {"correction_id": as_uuid(correction_id)})
    found = _show(connection, settings, chosen, most=1)
    if not found:
        raise OperationNotFoundError(_NO_SUCH.format(correction_id))
    return found[0]


def operation_status(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    most: int = 20,
    include_all: bool = False,
) -> OperationStatus:
    """The active operation and the `most` newest ended ones.

    Ended ones are those that changed rows; `include_all` adds dry runs, no-ops and failures.
    """
    active = _show(connection, settings, Condition(query("operation", "active_one")), most=1)
    ended = Condition(query("operation", "that_ended" if include_all else "that_changed_rows"))
    return OperationStatus(
        is_running=bool(active),
        current_operation=active[0] if active else None,
        recent_operations=_show(connection, settings, ended, most=most),
    )


def ask_to_cancel(
    connection: Connection[TupleRow], settings: Settings, correction_id: str, *, by: str
) -> Operation:
    """Ask an active operation to stop between two batches; a requested one ends at once.

    Raises OperationNotFoundError, and OperationStateError when it is not active.
    """
    operation = get_operation(connection, settings, correction_id)
    if not operation.is_active:
        raise OperationStateError(
            f"Operation {correction_id} is {operation.status}; only an active one can be cancelled."
        )
    values = {"correction_id": as_uuid(correction_id), "wanted": "cancel", "wanted_by": by}
    with transaction(connection, settings) as cursor:
        cursor.execute(query("control", "ask"), values)
        cursor.execute(query("control", "cancel_requested"), values)
    return get_operation(connection, settings, correction_id)


def resume_or_new_id(
    connection: Connection[TupleRow], settings: Settings, root_run_id: str, run_id: str
) -> tuple[str, str | None]:
    """Which operation a Dagster run works on: (correctionId, retryOf).

    The root run's operation while it is new, active or resumable: re-executing a failed run goes
    on with it. After it ended well, a re-execution is a new operation that names it.
    """
    with transaction(connection, settings, read_only=True) as cursor:
        state = cursor.execute(
            query("control", "state"), {"correction_id": as_uuid(root_run_id)}
        ).fetchone()
    if state is None or Status(state[0]) in ACTIVE | RESUMABLE or root_run_id == run_id:
        return root_run_id, None
    return run_id, root_run_id


def operation_of_run(
    connection: Connection[TupleRow], settings: Settings, run_id: str
) -> str | None:
    """correctionId of the operation that a Dagster run worked on last; None when on none."""
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "operation_of_run"), {"run_id": run_id}).fetchone()
    return str(row[0]) if row else None


def proof(connection: Connection[TupleRow], settings: Settings, correction_id: str) -> Proof:
    """The sums of an operation's ledger beside its plan. Raises OperationNotFoundError."""
    operation = get_operation(connection, settings, correction_id)
    planned = operation.records_planned or 0
    skipped = sum(
        records
        for reason, records in operation.skipped_by_reason.items()
        if reason not in _NEVER_PLANNED
    )
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(
            query("operation", "covered_seqs"), {"correction_id": as_uuid(correction_id)}
        ).fetchone()
    covered = int(row[0]) if row else 0
    return Proof(
        planned=planned,
        corrected=operation.records_corrected,
        skipped=skipped,
        failed=operation.records_failed,
        open=planned - covered,
    )


def as_uuid(correction_id: str) -> UUID:
    """The id as the database keeps it. Raises OperationNotFoundError where it is none."""
    try:
        return UUID(correction_id)
    except ValueError:
        raise OperationNotFoundError(_NO_SUCH.format(repr(correction_id[:60]))) from None


def _show(
    connection: Connection[TupleRow], settings: Settings, chosen: Condition, *, most: int
) -> list[Operation]:
    with (
        transaction(connection, settings, read_only=True, snapshot=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        rows = cursor.execute(
            query("operation", "show", chosen=chosen.text), {**chosen.values, "most": most}
        ).fetchall()
        for row in rows:
            changes = cursor.execute(
                query("operation", "changes"),
                {"correction_id": UUID(row["correction_id"]), "most": MOST_CHANGES},
            ).fetchall()
            row["changes"] = [
                Change(
                    symbol=change["symbol"],
                    from_=change["old_class"],
                    to=change["new_class"],
                    records=change["records"],
                )
                for change in changes
            ]
    return [_operation(row) for row in rows]


def _operation(row: dict[str, Any]) -> Operation:
    planned, done = row["records_planned"], row["records_done"]
    batches = row.pop("batches_planned") or 0
    batch_seconds = row.pop("batch_seconds")
    skipped = {reason: int(records) for reason, records in row.pop("by_reason").items()}
    failed = skipped.pop(SkipReason.QUARANTINED, 0)
    for reason, column in (
        (SkipReason.MISMATCHED_NOT_OVERWRITTEN, "mismatched_left"),
        (SkipReason.ARRIVED_LATE, "late_left"),
    ):
        if records := row.pop(column):
            skipped[reason.value] = records
    phase, status = Phase(row["phase"]), Status(row["status"])
    now = row.pop("records_now")
    rate = now / batch_seconds if batch_seconds else None
    running = status is Status.RUNNING and phase is Phase.CORRECTING
    error = row.pop("error")
    del row["records_done"]
    return Operation(
        **row,
        records_skipped=sum(skipped.values()),
        records_failed=failed,
        skipped_by_reason=skipped,
        # Rows that came late are batches of their own, which may be more than their number asks.
        batches_total=None if planned is None else max(batches, row["batches_done"]),
        progress_percent=progress_percent(done, planned, phase),
        records_per_second=rate,
        eta_seconds=remaining_seconds((planned or 0) - done, rate) if running else None,
        throttle=[],
        error=OperationError.model_validate(error) if error else None,
    )
