"""`service_health_alerts`: unhealthy components, and ticks that failed.

Belongs here: when a look becomes an alert. Does not: the probes (monitoring/health.py).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import dagster as dg
from psycopg import Connection, Cursor
from psycopg.rows import TupleRow

from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.sensors.instigators import judge_ticks
from assetclass_pipeline.defs.sensors.ticks import Answer, watch
from assetclass_pipeline.model.alert import Finding
from assetclass_pipeline.model.alert_rules import ComponentFacts, judge_components
from assetclass_pipeline.monitoring.watching import Look, judge_now
from assetclass_pipeline.settings import Settings

SERVICE_HEALTH_ALERTS: Final = "service_health_alerts"
_INTERVAL = 30


class ComponentHealth(Protocol):
    """One part of the service."""

    @property
    def is_healthy(self) -> bool:
        """Whether it does what it is there for."""

    @property
    def message(self) -> str:
        """How it is, for people."""


class ServiceHealth(Protocol):
    """A look at all parts."""

    @property
    def components(self) -> Mapping[str, ComponentHealth]:
        """By name."""


HealthLook = Callable[[Settings], ServiceHealth]
"""Asks every probe, each within its own time."""


def service_health_alerts_sensor(look_at_health: HealthLook | None) -> dg.SensorDefinition:
    """The sensor; without a way to ask for health it watches ticks only."""

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
        components: Mapping[str, ComponentFacts] = {}
        if look_at_health is not None:
            components = _facts(look_at_health(database.settings))
        before = _failed_before(context.cursor)

        def find(_: Cursor[TupleRow], unresolved: frozenset[str]) -> Sequence[Finding]:
            ticks = judge_ticks(
                context, unresolved, watched=lambda name: name != SERVICE_HEALTH_ALERTS
            )
            if look_at_health is None:
                return ticks
            return [*judge_components(components, before, unresolved), *ticks]

        def look(connection: Connection[TupleRow]) -> Look:
            return judge_now(connection, database.settings, find)

        answer = watch(database, SERVICE_HEALTH_ALERTS, look)
        failing = sorted(name for name, one in components.items() if not one.is_healthy)
        # What it forgets when it is reset is seen again by the next two looks.
        context.update_cursor(json.dumps({"failing": failing}))
        return answer

    return service_health_alerts


def _facts(health: ServiceHealth) -> dict[str, ComponentFacts]:
    return {
        name: ComponentFacts(one.is_healthy, one.message) for name, one in health.components.items()
    }


def _failed_before(cursor: str | None) -> frozenset[str]:
    try:
        said = json.loads(cursor or "{}")
    except ValueError:
        return frozenset()
    return frozenset(said.get("failing", ())) if isinstance(said, dict) else frozenset()
