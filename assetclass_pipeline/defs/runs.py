"""What a Dagster run means for the engine: its months, its operation, who asked for it.

Belongs here: reading tags and ids of a run. Does not: the operation itself.
"""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, cast

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.partitions import PARTITION_TAG, RANGE_END_TAG, RANGE_START_TAG
from assetclass_pipeline.engine.claiming import CorrectionRequest
from assetclass_pipeline.engine.operations import operation_of_run, resume_or_new_id
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.settings import Settings

if TYPE_CHECKING:
    Materialized = dg.MaterializeResult[None]
else:
    # Dagster compares return annotations with the bare class, and knows no parameter of it.
    Materialized = dg.MaterializeResult

USER_TAG = "user"
# Only runs that Dagster itself starts again have it.
_RETRY_TAG = "dagster/retry_number"
REASON_TAG = "assetclass/reason"
TICKET_TAG = "assetclass/ticket"
RESUME_TAG = "assetclass/resume"
"""correctionId of the operation that a run goes on with."""
REQUEST_TAG = "assetclass/request"
"""Which request a run was launched for: correctionId and how often it was asked for."""
CORRELATION_TAG = "assetclass/correlation_id"
"""Of the HTTP request that asked for a run."""
STOP_AT_TAG = "assetclass/stop_at"
"""When the window of a run closes, ISO 8601 with an offset."""

# A log call costs about 7 ms, and nobody reads faster.
LOG_INTERVAL = 5.0


def cover_all_months(run: dg.DagsterRun, instance: dg.DagsterInstance, calendar: Calendar) -> None:
    """Make a run that names no partition one over the range of all months.

    A run without partition means all rows. Dagster would then mark no month as materialised, and
    cannot evaluate a check beside a partitioned upstream asset ("Cannot access partition_key").
    """
    if PARTITION_TAG in run.tags or RANGE_START_TAG in run.tags:
        return
    keys = calendar.keys
    tags = {RANGE_START_TAG: keys[0], RANGE_END_TAG: keys[-1]}
    instance.add_run_tags(run.run_id, tags)
    # The stored run has them now; the one in this process was read before. It is shared by all
    # steps of the process, and only its type says that its tags do not change.
    cast("dict[str, str]", run.tags).update(tags)


def request_of(
    context: dg.AssetExecutionContext,
    connection: Connection[TupleRow],
    settings: Settings,
    options: CorrectionOptions,
    calendar: Calendar,
) -> CorrectionRequest:
    """The correction that this run carries out: a new one, or the one that its parent left."""
    months = context.partition_key_range
    correction_id, retry_of = operation_of(context.run, connection, settings)
    tags = context.run.tags
    return CorrectionRequest(
        correction_id=correction_id,
        options=options,
        scope=calendar.range_of(months.start, months.end),
        requested_by=requester_of(context.run),
        reason=tags.get(REASON_TAG),
        ticket=tags.get(TICKET_TAG),
        run_id=context.run.run_id,
        retry_of=retry_of,
        stop_at=_window_end(context.run),
        only_while_active=takes_up_request(context.run),
    )


@dataclass
class ProgressLog:
    """Writes a running operation into the run's log, every few seconds and at each phase."""

    log: dg.DagsterLogManager
    _phase: str = ""
    _written: float = field(default=float("-inf"))

    def __call__(self, operation: Operation) -> None:
        """Take a fresh state of the operation."""
        now = time.monotonic()
        if operation.phase == self._phase and now - self._written < LOG_INTERVAL:
            return
        self._phase, self._written = operation.phase, now
        self.log.info(describe_progress(operation))


def describe_progress(operation: Operation) -> str:
    """One line: phase, rows, rate and what is left."""
    parts = [f"{operation.kind} {operation.correction_id}: {operation.doing}"]
    if operation.records_planned is not None:
        parts.append(
            f"{operation.records_corrected:,} of {operation.records_planned:,} rows "
            f"({operation.progress_percent:.0f} %)"
        )
    if operation.records_per_second:
        parts.append(f"{operation.records_per_second:,.0f} rows/s")
    if operation.pacing:
        parts.append(f"batches of {operation.pacing.batch_size:,} x {operation.pacing.workers}")
    if operation.eta_seconds:
        parts.append(f"{operation.eta_seconds.low:.0f} to {operation.eta_seconds.high:.0f} s left")
    line = ", ".join(parts)
    return f"{line}. Waits: {' '.join(operation.throttle)}" if operation.throttle else line


def operation_of(
    run: dg.DagsterRun, connection: Connection[TupleRow], settings: Settings
) -> tuple[str, str | None]:
    """Which operation a run works on: (correctionId, retryOf).

    That of its root run, or the one that its tags name, while that can go on; else one of its own.
    """
    # A parent may have worked on the operation of a run before it: ask what it did, not its name.
    parent = run.parent_run_id and operation_of_run(connection, settings, run.parent_run_id)
    root = parent or run.tags.get(RESUME_TAG) or run.root_run_id or run.run_id
    return resume_or_new_id(connection, settings, root, run.run_id)


def requester_of(run: dg.DagsterRun) -> str:
    """Who asked for a run, as `Actor.of_requester` reads it; the web page vouches for nobody."""
    tags = run.tags
    if run.parent_run_id and _RETRY_TAG not in tags:
        # Re-executed at the web page: it inherits the tags of whoever asked for its parent.
        return Actor.dagster_ui().requester
    if schedule := tags.get("dagster/schedule_name"):
        return Actor.schedule(schedule).requester
    if sensor := tags.get("dagster/sensor_name"):
        return tags.get(USER_TAG) or Actor.sensor(sensor).requester
    return tags.get(USER_TAG) or Actor.dagster_ui().requester


def takes_up_request(run: dg.DagsterRun) -> bool:
    """Whether a run was launched for a request, which may have been cancelled in the meantime.

    Re-executed by hand it inherits the tag, and goes on with the operation however that ended.
    """
    return REQUEST_TAG in run.tags and run.parent_run_id is None


def _window_end(run: dg.DagsterRun) -> datetime | None:
    # Re-executed by hand, it inherits the tag of a night that is over.
    said = None if run.parent_run_id else run.tags.get(STOP_AT_TAG)
    return datetime.fromisoformat(said) if said else None
