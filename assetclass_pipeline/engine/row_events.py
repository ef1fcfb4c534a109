"""Events of a row, made of what operations planned, their ledger, and their lists.

Belongs here: one event from its sources. Does not: finding those (row_history.py), and what follows
from all events of a row (model/row_history.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from assetclass_pipeline.model.operation import Kind, SkipReason, Status
from assetclass_pipeline.model.row_history import GoneRows, RowEvent, RowOutcome, RowSource


@dataclass(frozen=True)
class PlanningOperation:
    """An operation that planned rows."""

    correction_id: str
    kind: str
    status: str
    requested_by: str
    reason: str | None
    ticket: str | None
    run_id: str | None
    started_at: datetime | None
    finished_at: datetime | None
    rollback_of: str | None


@dataclass(frozen=True)
class PlannedRow:
    """The row as one operation planned it; without a table it was found in an archive."""

    correction_id: str
    seq: int
    symbol: str | None
    timestamp: str | None
    before: str | None
    after: str | None
    table: str | None = None


def planned_event(
    operation: PlanningOperation,
    row: PlannedRow,
    facts: Mapping[str, Any],
    refused: Mapping[str, Any] | None,
) -> RowEvent:
    """What became of a planned row, by the `facts` of its ledger; `refused` is its quarantine."""
    reason: str | None = facts.get("skip_reason")
    why: str | None
    if facts.get("committed_at") is None:
        outcome, why = RowOutcome.PENDING, f"planned, and the operation is {operation.status}"
    elif reason == SkipReason.QUARANTINED:
        outcome, why = RowOutcome.QUARANTINED, refused["error_message"] if refused else None
    else:
        outcome, why = (RowOutcome.SKIPPED if reason else RowOutcome.CHANGED), reason
    return RowEvent(
        **_told_by(operation),
        happened_at=facts.get("committed_at"),
        not_after=facts.get("swept_at") if outcome is RowOutcome.CHANGED else None,
        outcome=outcome,
        why=why,
        from_=row.before,
        to=row.after,
        undone_by=facts.get("undone_by"),
        undone_at=facts.get("undone_at"),
        source=RowSource.TABLE if row.table else RowSource.ARCHIVE,
        table=row.table,
    )


def quarantine_event(operation: PlanningOperation, row: Mapping[str, Any]) -> RowEvent:
    """A row in quarantine whose plan is gone: its old value is not known."""
    return RowEvent(
        **_told_by(operation),
        happened_at=row["quarantined_at"],
        outcome=RowOutcome.QUARANTINED,
        why=row["error_message"],
        from_=None,
        to=row["after"],
        source=RowSource.LEDGER,
    )


def conflict_event(operation: PlanningOperation, row: Mapping[str, Any]) -> RowEvent:
    """What the rollback found, and what it would have restored."""
    return RowEvent(
        **_told_by(operation),
        happened_at=row["happened_at"],
        outcome=RowOutcome.CONFLICT,
        why=row["reason"],
        from_=row["class_now"],
        to=row["class_before"],
        source=RowSource.LEDGER,
    )


def _told_by(operation: PlanningOperation) -> dict[str, Any]:
    """What every event says of its operation."""
    return {
        "correction_id": operation.correction_id,
        "kind": Kind(operation.kind),
        "status": Status(operation.status),
        "requested_by": operation.requested_by,
        "reason": operation.reason,
        "ticket": operation.ticket,
        "run_id": operation.run_id,
        "rollback_of": operation.rollback_of,
    }


def gone_rows(operation: PlanningOperation, records: int, why: str) -> GoneRows:
    """An operation that changed so many rows of a symbol, and nobody knows which."""
    return GoneRows(
        correction_id=operation.correction_id,
        kind=Kind(operation.kind),
        finished_at=operation.finished_at,
        records=records,
        why=why,
    )
