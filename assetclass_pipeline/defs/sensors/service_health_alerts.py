"""`service_health_alerts`: unhealthy components, and ticks that failed.

Belongs here: when a look becomes an alert. Does not: the probes (monitoring/health.py).
"""

import json
from collections.abc import Callable, Sequence
from typing import Final

import dagster as dg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.instigators import judge_ticks
from assetclass_pipeline.defs.sensors.ticks import Answer, watch
from assetclass_pipeline.model.alert import Finding
from assetclass_pipeline.model.alert_rules import ComponentFacts, judge_components
from assetclass_pipeline.monitoring.health import Health
from assetclass_pipeline.monitoring.watching import Look, judge_now
from assetclass_pipeline.settings import Settings

SERVICE_HEALTH_ALERTS: Final = "service_health_alerts"
# Two looks make an alert, and people must know within a minute.
_INTERVAL = 15


HealthLook = Callable[[Settings], Health]
"""Asks every probe, each within its own time."""


def service_health_alerts_sensor(look_at_health: HealthLook) -> dg.SensorDefinition:
    """The sensor over one way to ask."""

    @dg.sensor(
        name=SERVICE_HEALTH_ALERTS,
        minimum_interval_seconds=_INTERVAL,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Opens an alert when a component is unhealthy in two looks in a row (one alert for all "
            "of them when there are several), and when a sensor or schedule failed to tick."
        ),
    )
    def service_health_alerts(
        context: dg.SensorEvaluationContext, database: dg.ResourceParam[MarketDatabase]
    ) -> Answer:
        components = _facts(look_at_health(database.settings))
        before = _looks_before(context.cursor)

        def find(_: Cursor[TupleRow], unresolved: frozenset[str]) -> Sequence[Finding]:
            ticks = judge_ticks(
                context, unresolved, watched=lambda name: name != SERVICE_HEALTH_ALERTS
            )
            return [*judge_components(components, before, unresolved), *ticks]

        def look(connection: Connection[TupleRow]) -> Look:
            return judge_now(connection, database.settings, find)

        answer = watch(database, SERVICE_HEALTH_ALERTS, look)
        failing = {
            name: before.get(name, 0) + 1
            for name, one in sorted(components.items())
            if not one.is_healthy
        }
        # What it forgets when it is reset is seen again by the next two looks.
        context.update_cursor(json.dumps({"failing": failing}))
        return answer

    return service_health_alerts


def _facts(health: Health) -> dict[str, ComponentFacts]:
    return {
        name: ComponentFacts(one.is_healthy, one.message) for name, one in health.components.items()
    }


def _looks_before(cursor: str | None) -> dict[str, int]:
    """In how many looks in a row each component was unhealthy, up to the one before this."""
    try:
        said = json.loads(cursor or "{}")
    except ValueError:
        return {}
    failing = said.get("failing") if isinstance(said, dict) else None
    if not isinstance(failing, dict):
        return {}
    return {name: looks for name, looks in failing.items() if isinstance(looks, int)}
