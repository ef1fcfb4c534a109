"""`run_failure_alerts`: runs that failed, whoever ended them, and successes that end an alert.

Belongs here: from events to facts, and what explains a failure. Does not: operations, which are
watched in the database whoever starts them (operation_alerts.py).
"""

from typing import Final

import dagster as dg
from dagster._core.events import JobFailureData
from dagster._core.storage.dagster_run import DagsterRun
from psycopg import Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.checks import NOT_COMPUTED
from assetclass_pipeline.defs.failures import first_line, innermost
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.events import (
    Events,
    Ours,
    events_after,
    runs_of,
    watch_events,
)
from assetclass_pipeline.defs.sensors.ticks import Answer
from assetclass_pipeline.model.alert_rules import RunFacts, judge_run
from assetclass_pipeline.monitoring.watching import (
    MOST_EVENTS,
    Batch,
    explained_runs,
)

RUN_FAILURE_ALERTS: Final = "run_failure_alerts"
_INTERVAL = 10
_TYPES = (dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS)


@dg.sensor(
    name=RUN_FAILURE_ALERTS,
    minimum_interval_seconds=_INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Opens an alert when a run failed for a reason that no other alert tells of, also one that "
        "Dagster gave up or that never began, and ends it when a later run of the job succeeds."
    ),
)
def run_failure_alerts(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[MarketDatabase]
) -> Answer:
    """Look at the runs that ended since the last look."""
    ours, instance = Ours.of(context), context.instance

    def read(cursor: Cursor[TupleRow], after: int | None) -> Batch:
        events = events_after(instance, _TYPES, after, most=MOST_EVENTS)
        facts = _facts(instance, events, ours, cursor)
        findings = [finding for one in facts if (finding := judge_run(one)) is not None]
        return Batch(findings, events.position, len(events.records), is_full=events.is_full)

    return watch_events(context, database, RUN_FAILURE_ALERTS, read)


def _facts(
    instance: dg.DagsterInstance, events: Events, ours: Ours, cursor: Cursor[TupleRow]
) -> list[RunFacts]:
    runs = runs_of(instance, events.records)
    failed = [record.run_id for record in events.records if _is_failure(record)]
    explained = explained_runs(cursor, failed)
    found: list[RunFacts] = []
    well: set[str] = set()
    # From the newest on: what failed before its job succeeded need not be explained.
    for record in reversed(events.records):
        run = runs.get(record.run_id)
        if run is None or run.job_name in well or not _concerns_us(instance, run, ours):
            continue
        if _is_failure(record):
            why = explained.get(run.run_id) or _failed_blocking_check(instance, run)
            message = _message(record)
        else:
            why, message = None, ""
            well.add(run.job_name)
        found.append(RunFacts(run.run_id, run.job_name, not _is_failure(record), message, why))
    return found[::-1]


def _is_failure(record: dg.EventLogRecord) -> bool:
    event = record.event_log_entry.dagster_event
    return event is not None and event.event_type is dg.DagsterEventType.RUN_FAILURE


def _concerns_us(instance: dg.DagsterInstance, run: DagsterRun, ours: Ours) -> bool:
    if ours.has_run(run):
        return True
    if run.asset_selection or run.asset_check_selection or run.job_name in ours.jobs:
        return False
    # A job of somebody else's, which may contain assets of ours all the same.
    planned = instance.event_log_storage.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, limit=MOST_EVENTS
    ).records
    return any(record.asset_key in ours.assets for record in planned)


def _failed_blocking_check(instance: dg.DagsterInstance, run: DagsterRun) -> str | None:
    """The check that stopped a run on purpose; asset_check_alerts tells of it."""
    evaluated = instance.event_log_storage.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, limit=MOST_EVENTS
    ).records
    for record in evaluated:
        event = record.event_log_entry.dagster_event
        evaluation = event.asset_check_evaluation_data if event else None
        if evaluation is None or evaluation.passed or not evaluation.blocking:
            continue
        if not (evaluation.description or "").startswith(NOT_COMPUTED):
            return f"check {evaluation.check_name}"
    return None


def _message(record: dg.EventLogRecord) -> str:
    """What the first failed step says to people, or else Dagster."""
    event = record.event_log_entry.dagster_event
    if event is None:
        return ""
    failure = event.event_specific_data
    # A run that Dagster gave up, or that never began, has none.
    if not isinstance(failure, JobFailureData):
        return first_line(event.message or "")
    if failure.first_step_failure_event is None:
        return innermost(failure.error) or first_line(event.message or "")
    step = failure.first_step_failure_event.step_failure_data
    if step.user_failure_data is not None and step.user_failure_data.description:
        return first_line(step.user_failure_data.description)
    return innermost(step.error) or first_line(event.message or "")
