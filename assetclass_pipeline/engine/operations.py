"""Operations as their readers see them: status, history, proof.

Belongs here: reading. Does not: claiming an operation (claiming.py), asking something of it
(control.py), and what it does (correction.py).
"""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import TupleRow, dict_row

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.queries import query
from assetclass_pipeline.engine.conditions import Condition
from assetclass_pipeline.engine.silence import is_abandoned, silence, silence_limits
from assetclass_pipeline.errors import OperationNotFoundError
from assetclass_pipeline.model.months import TimeRange
from assetclass_pipeline.model.operation import (
    ACTIVE,
    RESUMABLE,
    Kind,
    Operation,
    OperationPacing,
    OperationStatus,
    Phase,
    Proof,
    SkipReason,
    Status,
    progress_percent,
    remaining_seconds,
)
from assetclass_pipeline.settings import Settings

# How many entries an operation shows at most: by itself, and among others.
_ALONE = {"most_changes": 1000, "most_events": 50, "most_quarantined": 100, "most_conflicts": 100}
_IN_A_PAGE = dict.fromkeys(_ALONE, 20)
_NEVER_PLANNED = {SkipReason.MISMATCHED_NOT_OVERWRITTEN, SkipReason.ARRIVED_LATE}
_NO_SUCH = "No operation has the correctionId {}. `assetclass status` lists the recent ones."


def get_operation(
    connection: Connection[TupleRow], settings: Settings, correction_id: str
) -> Operation:
    """One operation with its change summary. Raises OperationNotFoundError."""
    chosen = Condition(query("operation", "one"), {"correction_id": as_uuid(correction_id)})
    found = _show(connection, settings, chosen, _ALONE)
    if not found:
        raise OperationNotFoundError(_NO_SUCH.format(correction_id))
    return found[0]


@dataclass(frozen=True)
class Place:
    """Where an operation stands in the list of all of them, the newest first."""

    requested_at: datetime
    correction_id: str


def operation_status(
    connection: Connection[TupleRow],
    settings: Settings,
    *,
    most: int = 20,
    include_all: bool = False,
    older_than: Place | None = None,
) -> OperationStatus:
    """The active operation and the `most` newest ended ones, of those `older_than` some other.

    Ended ones are those that changed rows; `include_all` adds dry runs, no-ops and failures. Each
    shows its 20 largest changes, and 20 events, quarantined rows and conflicts: `get_operation`
    shows more.
    """
    ended = Condition(query("operation", "that_ended" if include_all else "that_changed_rows"))
    if older_than is not None:
        ended = Condition(
            query("operation", "older", ended=ended.text),
            {"than": older_than.requested_at, "than_id": as_uuid(older_than.correction_id)},
        )
    page = Condition(query("operation", "page", ended=ended.text), {**ended.values, "most": most})
    shown = _show(connection, settings, page, _IN_A_PAGE)
    # At most one is active: the database sees to that.
    active = next((operation for operation in shown if operation.is_active), None)
    return OperationStatus(
        is_running=active is not None,
        current_operation=active,
        recent_operations=[operation for operation in shown if not operation.is_active],
    )


def active_id(connection: Connection[TupleRow], settings: Settings) -> str | None:
    """correctionId of the active operation; None when there is none."""
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "active")).fetchone()
    return str(row[0]) if row else None


@dataclass(frozen=True)
class Unfinished:
    """An operation that can go on, and the rows that it is about."""

    correction_id: str
    scope: TimeRange


def left_by_last_window(connection: Connection[TupleRow], settings: Settings) -> Unfinished | None:
    """The newest correction, when its window closed (or its time was up) before it was done."""
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "left_by_window")).fetchone()
    return Unfinished(row[0], TimeRange(row[1], row[2])) if row else None


def scope_of(connection: Connection[TupleRow], settings: Settings, correction_id: str) -> TimeRange:
    """The rows that an operation is about. Raises OperationNotFoundError."""
    key = {"correction_id": as_uuid(correction_id)}
    with transaction(connection, settings, read_only=True) as cursor:
        row = cursor.execute(query("operation", "plan_of"), key).fetchone()
    if row is None:
        raise OperationNotFoundError(_NO_SUCH.format(correction_id))
    return TimeRange(row[2], row[3])


def resume_or_new_id(
    connection: Connection[TupleRow], settings: Settings, root_run_id: str, run_id: str
) -> tuple[str, str | None]:
    """Which operation a Dagster run works on: (correctionId, retryOf).

    The root run's operation while it is new, active or resumable: re-executing a failed run goes
    on with it. After it ended well, or was rolled back, a re-execution is a new operation that
    names it.
    """
    key = {"correction_id": as_uuid(root_run_id)}
    with transaction(connection, settings, read_only=True) as cursor:
        state = cursor.execute(query("control", "state"), key).fetchone()
        undone = cursor.execute(query("operation", "begun_rollback"), key).fetchone() is not None
    goes_on = state is None or (Status(state[0]) in ACTIVE | RESUMABLE and not undone)
    if goes_on or root_run_id == run_id:
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
    connection: Connection[TupleRow],
    settings: Settings,
    chosen: Condition,
    most: dict[str, int],
) -> list[Operation]:
    statement = query(
        "operation",
        "show",
        chosen=chosen.text,
        flow=query("operation", "flow"),
        silence=silence(),
        is_abandoned=is_abandoned(),
    )
    bound = {**chosen.values, **silence_limits(settings), **most}
    with (
        transaction(connection, settings, read_only=True),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        return [_operation(row) for row in cursor.execute(statement, bound).fetchall()]


def _operation(row: dict[str, Any]) -> Operation:
    planned, done = row["records_planned"], row.pop("records_done")
    skipped = _skipped(row)
    failed = skipped.pop(SkipReason.QUARANTINED, 0)
    phase, status = Phase(row["phase"]), Status(row["status"])
    flowed, seconds = row.pop("flow_records"), row.pop("flow_seconds")
    rate = flowed / seconds if seconds else None
    running = status is Status.RUNNING and phase is Phase.CORRECTING and not row["abandoned"]
    error, pacing, estimate = row.pop("error"), row.pop("pacing"), row.pop("estimate")
    throttle = row.pop("throttle") or []
    batches_total = _batches_total(row, done, pacing)
    restored = row.pop("already_restored") + row["records_corrected"]
    conflicting = row.pop("records_conflicting")
    return Operation(
        **row,
        **_undone(row["kind"], restored, conflicting, skipped),
        # What others had put back is where it should be.
        records_skipped=sum(skipped.values()) - skipped.get(SkipReason.ALREADY_RESTORED, 0),
        records_failed=failed,
        skipped_by_reason=skipped,
        batches_total=batches_total,
        progress_percent=progress_percent(done, planned, phase),
        records_per_second=rate,
        eta_seconds=remaining_seconds((planned or 0) - done, rate) if running else None,
        throttle=throttle if status in ACTIVE and not row["abandoned"] else [],
        pacing=_pacing(pacing),
        estimated_seconds=estimate or None,
        error=error or None,
    )


def _undone(
    kind: str, restored: int, conflicting: int, skipped: dict[str, int]
) -> dict[str, int | None]:
    if kind != Kind.ROLLBACK:
        return {"records_restored": None, "records_conflicting": None}
    meanwhile = skipped.get(SkipReason.ALREADY_RESTORED, 0)
    return {"records_restored": restored + meanwhile, "records_conflicting": conflicting}


def _skipped(row: dict[str, Any]) -> dict[str, int]:
    skipped = {reason: int(records) for reason, records in row.pop("by_reason").items()}
    for reason, column in (
        (SkipReason.MISMATCHED_NOT_OVERWRITTEN, "mismatched_left"),
        (SkipReason.ARRIVED_LATE, "late_left"),
    ):
        if records := row.pop(column):
            skipped[reason.value] = records
    return skipped


def _batches_total(row: dict[str, Any], done: int, pacing: dict[str, Any] | None) -> int | None:
    """Exact before the first batch; then the rest is counted in batches of the present size."""
    planned, first_size = row["records_planned"], row.pop("first_batch_size")
    from_plan, batches_done = int(row.pop("batches_planned") or 0), int(row["batches_done"])
    if planned is None:
        return None
    if not batches_done:
        return from_plan
    size = int((pacing or {}).get("batchSize") or first_size or 1)
    rest: int = max(0, planned - done)
    return batches_done + math.ceil(rest / size)


def _pacing(stored: dict[str, Any] | None) -> OperationPacing | None:
    if not stored:
        return None
    return OperationPacing(batch_size=stored["batchSize"], workers=stored["workers"])
