"""`self_healing_correction`: asks for a correction when too many rows need one. Off by default.

Belongs here: when a machine may ask by itself, and why not now. Does not: the correction.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.defs.jobs import CORRECTION_JOB
from assetclass_pipeline.defs.partitions import RANGE_END_TAG, RANGE_START_TAG
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.runs import REASON_TAG
from assetclass_pipeline.defs.sensors.ticks import Answer, ask
from assetclass_pipeline.engine.analysis import correctable_months
from assetclass_pipeline.engine.operations import active_id, operation_status
from assetclass_pipeline.engine.reference import check_reference
from assetclass_pipeline.model.operation import Kind, Operation, Status
from assetclass_pipeline.monitoring.watching import Measurement, newest_measurement
from assetclass_pipeline.settings import Settings

SELF_HEALING_CORRECTION: Final = "self_healing_correction"
FRESH_FOR: Final = timedelta(hours=26)
"""Quality is measured once a day; what is older says nothing about now."""
AGAIN_AFTER: Final = timedelta(hours=12)
"""A second try so soon would meet what the first one met."""
_INTERVAL = 300
_NEWEST = 5

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dg.sensor(
    name=SELF_HEALING_CORRECTION,
    job_name=CORRECTION_JOB,
    minimum_interval_seconds=_INTERVAL,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description=(
        "Switched on, it asks for a correction of the damaged months when the newest quality "
        "report has too many correctable rows, symbols can be relied on, nothing else is active, "
        "and its last try did help."
    ),
)
def self_healing_correction(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[MarketDatabase]
) -> Answer:
    """Ask for a correction, or say why not."""
    return ask(
        database,
        SELF_HEALING_CORRECTION,
        lambda connection: _decide(context.instance, connection, database.settings),
    )


def _decide(
    instance: dg.DagsterInstance, connection: Connection[TupleRow], settings: Settings
) -> Answer:
    with transaction(connection, settings, read_only=True) as cursor:
        measured = newest_measurement(cursor)
    why_not = (
        _not_needed(measured, settings)
        or _occupied(instance, connection, settings)
        or _tried(instance, connection, settings)
    )
    if why_not or measured is None:
        return dg.SkipReason(why_not)
    tables = inspect_market_tables(connection, settings, for_writing=False)
    if not check_reference(connection, tables, settings).is_sound:
        return dg.SkipReason(
            "The reference is not sound: see the check reference_is_sound of symbols. Correcting "
            "by it could do harm."
        )
    months = correctable_months(connection, tables, settings)
    if months is None:
        return dg.SkipReason("No row needs a correction any more: it was corrected meanwhile.")
    facts = measured.facts
    reason = (
        f"self-healing: {measured.correctable:,} rows "
        f"({measured.correctable_percent:.1f} %) need a correction"
    )
    return dg.RunRequest(
        # One measurement asks once, whatever becomes of the run. With its time, because a database
        # that is restored gives its number out again, and Dagster remembers keys for ever.
        run_key=f"measurement {facts.measurement_id} of {facts.measured_at:%Y-%m-%dT%H:%M:%S}",
        tags={RANGE_START_TAG: months[0], RANGE_END_TAG: months[1], REASON_TAG: reason},
    )


def _not_needed(measured: Measurement | None, settings: Settings) -> str:
    if measured is None:
        return "Quality was never measured: run data_quality_job."
    at, share = measured.facts.measured_at, measured.correctable_percent
    if datetime.now(UTC) - at > FRESH_FOR:
        return (
            f"The newest quality report is of {at:%Y-%m-%d %H:%M} UTC, too old to act on: run "
            "data_quality_job."
        )
    limit = settings.thresholds.correctable
    if share <= limit:
        return f"{share:.1f} % of the rows need a correction; up to {limit:g} % is nothing to do."
    return ""


def _occupied(
    instance: dg.DagsterInstance, connection: Connection[TupleRow], settings: Settings
) -> str:
    active = active_id(connection, settings)
    if active is not None:
        return f"Operation {active} is active."
    waiting = instance.get_runs(
        dg.RunsFilter(job_name=CORRECTION_JOB, statuses=_UNFINISHED), limit=1
    )
    return f"Run {waiting[0].run_id} of {CORRECTION_JOB} is to begin." if waiting else ""


def _tried(
    instance: dg.DagsterInstance, connection: Connection[TupleRow], settings: Settings
) -> str:
    """Why the last try of its own forbids another one; empty when it does not."""
    tries = instance.get_run_records(
        dg.RunsFilter(tags={"dagster/sensor_name": SELF_HEALING_CORRECTION}), limit=1
    )
    if not tries:
        return ""
    [last] = tries
    if datetime.now(UTC) - last.create_timestamp < AGAIN_AFTER:
        return (
            f"The last try was at {last.create_timestamp:%Y-%m-%d %H:%M} UTC, less than "
            f"{AGAIN_AFTER.total_seconds() / 3600:g} hours ago."
        )
    newest = operation_status(connection, settings, most=_NEWEST).recent_operations
    if any(_helped(operation, last.create_timestamp) for operation in newest):
        return ""
    return (
        f"The last try, run {last.dagster_run.run_id}, did not help: a person must look. Once any "
        "correction has succeeded and changed rows, the next report may ask for one again."
    )


def _helped(operation: Operation, since: datetime) -> bool:
    """Whether a correction, its own or a person's, did what the last try should have done."""
    return (
        operation.kind is Kind.CORRECTION
        and operation.status is Status.SUCCEEDED
        and operation.requested_at >= since
    )
