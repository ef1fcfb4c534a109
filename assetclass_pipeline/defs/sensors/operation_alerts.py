"""`operation_alerts`: corrections and rollbacks of any origin, and what measurements say.

Belongs here: when it looks. Does not: reading and judging, which need no Dagster
(monitoring/watching.py).
"""

from typing import Final

import dagster as dg
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.instigators import judge_ticks
from assetclass_pipeline.defs.sensors.service_health_alerts import SERVICE_HEALTH_ALERTS
from assetclass_pipeline.defs.sensors.ticks import Answer, watch
from assetclass_pipeline.monitoring.watching import Look, judge_now, look_at_operations

OPERATION_ALERTS: Final = "operation_alerts"
_INTERVAL = 10


@dg.sensor(
    name=OPERATION_ALERTS,
    minimum_interval_seconds=_INTERVAL,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Opens an alert when an operation failed, takes too long, met too many refused rows or was "
        "slower than usual, whoever started it, and when the newest quality report is bad."
    ),
)
def operation_alerts(
    context: dg.SensorEvaluationContext, database: dg.ResourceParam[MarketDatabase]
) -> Answer:
    """Look at what ended since the last look, and at what is active."""

    def look(connection: Connection[TupleRow]) -> Look:
        settings = database.settings
        found = look_at_operations(connection, settings, watcher=OPERATION_ALERTS)
        context.update_cursor(str(found.position))
        # The one that watches all ticks cannot tell that its own fail.
        watcher = judge_now(
            connection,
            settings,
            lambda _, unresolved: judge_ticks(
                context, unresolved, watched=lambda name: name == SERVICE_HEALTH_ALERTS
            ),
        )
        return Look(found.events, found.changed + watcher.changed, found.position)

    return watch(database, OPERATION_ALERTS, look)
