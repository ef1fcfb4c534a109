"""Operations: their states, which change may follow which, and what one looks like on the wire.

Belongs here: pure state and progress arithmetic. Does not: rows of the operation tables.
"""

from enum import StrEnum
from typing import Any

from pydantic import Field

from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel


class Kind(StrEnum):
    """What an operation does."""

    CORRECTION = "correction"
    ROLLBACK = "rollback"


class Status(StrEnum):
    """Where an operation stands."""

    REQUESTED = "requested"
    RUNNING = "running"
    PAUSED = "paused"
    PLANNED = "planned"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    INTERRUPTED = "interrupted"


ACTIVE = frozenset({Status.REQUESTED, Status.RUNNING, Status.PAUSED})
"""States that keep every other operation out."""

RESUMABLE = frozenset(
    {Status.PLANNED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT, Status.INTERRUPTED}
)
"""Ended or parked, but their ledger lets them go on where they stopped."""


class Phase(StrEnum):
    """What a running operation is doing."""

    STARTING = "starting"
    ANALYSING = "analysing"
    PLANNING = "planning"
    PLANNED = "planned"
    CORRECTING = "correcting"
    SWEEPING = "sweeping"
    VERIFYING = "verifying"
    DONE = "done"


class SkipReason(StrEnum):
    """Why a planned row was not written."""

    LOCKED = "locked"
    MOVED_OR_CHANGED = "moved_or_changed"
    CLASS_CHANGED = "class_changed_in_symbols"
    CHANGED_BY_OTHERS = "changed_by_others"
    DELETED = "deleted"
    PLANNED_TWICE = "planned_twice"
    VALUE_REWRITTEN = "value_rewritten_by_trigger"
    VETOED = "vetoed_by_trigger"
    QUARANTINED = "quarantined"
    MISMATCHED_NOT_OVERWRITTEN = "mismatched_not_overwritten"
    ARRIVED_LATE = "arrived_late"
    ALREADY_RESTORED = "already_restored"


class Change(WireModel):
    """Rows of one symbol that an operation changed from one class to another."""

    symbol: str | None
    from_: str | None = Field(alias="from")
    to: str | None
    records: int


class EtaRange(WireModel):
    """Estimated seconds to the end."""

    low: Seconds
    high: Seconds


class OperationError(WireModel):
    """Why an operation did not end well."""

    code: str
    message: str


class OperationPacing(WireModel):
    """How fast a running operation goes: rows of its next batch, connections that write."""

    batch_size: int
    workers: int


class OperationEvent(WireModel):
    """What somebody asked of an operation, or what it met."""

    happened_at: Moment
    event: str
    actor: str
    details: dict[str, Any]


class QuarantinedRow(WireModel):
    """A row that the database refused to change, and what it said."""

    id: str | None
    symbol: str | None
    timestamp: str | None
    corrected_asset_class: str | None
    error_code: str
    error_message: str


class Conflict(WireModel):
    """A row that a rollback left alone: its class before the correction, after it, and now.

    `now` is NULL for a deleted row too; `reason` tells them apart.
    """

    id: str | None
    symbol: str | None
    timestamp: str | None
    before: str | None
    corrected: str | None
    now: str | None
    reason: str


class Operation(WireModel):
    """One correction or rollback as every surface shows it.

    `silent_seconds` is None unless the process that holds an active operation missed some
    heartbeats; once it is `abandoned`, whoever resumes it or asks for another one ends it as
    interrupted. `throttle` says why no batch is started now; `waits` how many seconds each signal
    held it (`next_process`: it lay between two processes); `quarantined`, `conflicts` and `events`
    hold the first and the newest ones. Of a rollback, `records_restored` counts the rows that have
    their old value back by its doing or had it already, `records_conflicting` those that somebody
    changed or deleted since the correction; both are None of a correction. `correlation_id` is
    of the HTTP request that asked for it.
    """

    correction_id: str
    kind: Kind
    status: Status
    phase: Phase
    dry_run: bool
    requested_by: str
    reason: str | None
    ticket: str | None
    run_id: str | None
    requested_at: Moment
    started_at: Moment | None
    finished_at: Moment | None
    duration_seconds: Seconds | None
    options: dict[str, Any]
    records_planned: int | None
    records_corrected: int
    records_skipped: int
    records_failed: int
    records_restored: int | None
    records_conflicting: int | None
    skipped_by_reason: dict[str, int]
    batches_done: int
    batches_total: int | None
    progress_percent: Percent
    records_per_second: float | None
    eta_seconds: EtaRange | None
    throttle: list[str]
    silent_seconds: Seconds | None
    abandoned: bool
    backup_table: str | None
    quality_before: dict[str, Any] | None
    quality_after: dict[str, Any] | None
    changes: list[Change]
    error: OperationError | None
    rollback_of: str | None
    rolled_back_by: str | None
    retry_of: str | None
    pacing: OperationPacing | None
    waits: dict[str, Seconds]
    quarantined: list[QuarantinedRow]
    conflicts: list[Conflict]
    events: list[OperationEvent]
    preflight: dict[str, Any] | None
    estimated_seconds: EtaRange | None
    estimate_error_percent: float | None
    reference_hash: str | None
    window_ends_at: Moment | None
    correlation_id: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether it keeps other operations out."""
        return self.status in ACTIVE

    @property
    def doing(self) -> str:
        """Its phase for people: a rollback's batches do not correct."""
        restoring = self.kind is Kind.ROLLBACK and self.phase is Phase.CORRECTING
        return "restoring" if restoring else self.phase.value


class OperationStatus(WireModel):
    """Answer to "what is going on": the active operation and the newest ones before it."""

    is_running: bool
    current_operation: Operation | None
    recent_operations: list[Operation]


def progress_percent(done: int, planned: int | None, phase: Phase) -> float:
    """Share of planned rows that batches have dealt with, 0..100; 100 only when done."""
    if phase is Phase.DONE:
        return 100.0
    if not planned:
        return 0.0
    return min(99.0, 100 * done / planned)


def remaining_seconds(left: int, rate: float | None) -> EtaRange | None:
    """Seconds for `left` rows at `rate` rows a second, with a quarter of doubt either way."""
    if not rate:
        return None
    rest = max(0, left) / rate
    return EtaRange(low=rest * 0.75, high=rest * 1.25)


# Fewer rows say nothing about a rate: the refused ones may all stand at the table's beginning.
_LEAST_ROWS_OF_A_RATE = 1000


def too_many_failures(failed: int, *, done: int, planned: int, limit: float) -> bool:
    """Whether more than `limit` percent of the rows dealt with were refused by the database.

    Of the first 1000 rows, or of a smaller plan, as many may fail as of all of them.
    """
    return 100 * failed > limit * max(done, min(planned, _LEAST_ROWS_OF_A_RATE))


class Proof(WireModel):
    """The ledger's sums against the plan: `unaccounted` is 0 unless a row was lost or invented."""

    planned: int
    corrected: int
    skipped: int
    failed: int
    open: int

    @property
    def unaccounted(self) -> int:
        """Planned rows neither corrected, nor skipped or failed with a reason, nor still open."""
        return self.planned - self.corrected - self.skipped - self.failed - self.open
