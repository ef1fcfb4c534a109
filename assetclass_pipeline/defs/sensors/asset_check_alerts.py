"""`asset_check_alerts`: every evaluation of a check on our assets, whoever made it.

Belongs here: from events to facts. Does not: which alert a check is (model/alert_rules.py).
"""

from collections.abc import Iterator, Mapping
from typing import Final

import dagster as dg
from psycopg import Cursor
from psycopg.rows import TupleRow
from pydantic.alias_generators import to_camel

from assetclass_pipeline.defs.checks import NOT_COMPUTED
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.events import Ours, events_after, watch_events
from assetclass_pipeline.defs.sensors.ticks import Answer
from assetclass_pipeline.model.alert_rules import CheckFacts, judge_check
from assetclass_pipeline.monitoring.watching import (
    MOST_EVENTS,
    Batch,
    limits_of,
)

ASSET_CHECK_ALERTS: Final = "asset_check_alerts"
_INTERVAL = 10
_VALUES = dg.IntMetadataValue | dg.FloatMetadataValue | dg.TextMetadataValue
_MOST_ROWS = 5


@dg.sensor(
    name=ASSET_CHECK_ALERTS,
    minimum_interval_seconds=_INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Opens an alert when the newest evaluation of an asset check failed, and ends it when one "
        "passes: of runs that succeeded, of other jobs, of backfills, and without a run."
    ),
)
def asset_check_alerts(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[MarketDatabase]
) -> Answer:
    """Look at the evaluations since the last look."""
    ours, instance = Ours.of(context), context.instance
    limits = limits_of(database.settings)

    def read(_: Cursor[TupleRow], after: int | None) -> Batch:
        events = events_after(
            instance, [dg.DagsterEventType.ASSET_CHECK_EVALUATION], after, most=MOST_EVENTS
        )
        findings = [
            finding
            for record in events.records
            if (facts := _facts(record, ours)) is not None
            for finding in judge_check(facts, limits)
        ]
        return Batch(findings, events.position, len(events.records), is_full=events.is_full)

    return watch_events(context, database, ASSET_CHECK_ALERTS, read)


def _facts(record: dg.EventLogRecord, ours: Ours) -> CheckFacts | None:
    event = record.event_log_entry.dagster_event
    evaluation = event.asset_check_evaluation_data if event else None
    if evaluation is None or evaluation.asset_key not in ours.assets:
        return None
    numbers = dict(_numbers(evaluation.metadata))
    value = numbers.get("value")
    description = evaluation.description or ""
    return CheckFacts(
        asset=evaluation.asset_key.to_user_string(),
        check=evaluation.check_name,
        passed=evaluation.passed,
        is_error=evaluation.severity is dg.AssetCheckSeverity.ERROR,
        description=description or None,
        run_id=record.run_id or None,
        partition=evaluation.partition,
        value=float(value) if isinstance(value, (int, float)) else None,
        numbers=numbers,
        computed=not description.startswith(NOT_COMPUTED),
    )


def _numbers(metadata: Mapping[str, dg.MetadataValue]) -> Iterator[tuple[str, object]]:
    """What an alert can hold of a check's metadata: values, and the first rows of tables."""
    for name, entry in metadata.items():
        if isinstance(entry, _VALUES):
            yield to_camel(name), entry.value
        elif isinstance(entry, dg.TableMetadataValue):
            yield to_camel(name), [dict(record.data) for record in entry.records[:_MOST_ROWS]]
