"""Ticks of sensors over a pipeline whose events of earlier tests were looked at already."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from assetclass_pipeline.database.connections import connect
from assetclass_pipeline.defs.sensors import events
from assetclass_pipeline.model.alert import Alert
from assetclass_pipeline.monitoring.alert_store import list_alerts
from assetclass_pipeline_tests.defs.conftest import Pipeline


@dataclass
class Watch:
    """Sensors of one pipeline, ticked by hand."""

    pipeline: Pipeline
    instance: dg.DagsterInstance = field(init=False)

    def __post_init__(self) -> None:
        self.instance = self.pipeline.instance

    def tick(
        self, name: str, *, cursor: str | None = None, sensor: dg.SensorDefinition | None = None
    ) -> SensorExecutionData:
        """One tick, without a cursor unless told: what counts stands in the database."""
        defs = self.pipeline.defs
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=cursor,
            sensor_name=name,
            definitions=defs,
            resources={"database": (defs.resources or {})["database"]},
        ) as context:
            return (sensor or defs.resolve_sensor_def(name)).evaluate_tick(context)

    def alerts(self, *, include_resolved: bool = False) -> dict[str, Alert]:
        """Alerts by cause; without `include_resolved` those that are open."""
        settings = self.pipeline.settings
        with connect(self.pipeline.market.dsn, settings, purpose="test") as connection:
            found = list_alerts(connection, settings, include_resolved=include_resolved)
        return {alert.cause: alert for alert in found}

    def positions(self) -> Sequence[tuple[str, str, int]]:
        """How far each watcher has looked."""
        return self.pipeline.market.rows(
            "SELECT watcher, source, position FROM assetclass.watch_position ORDER BY 1, 2"
        )

    def report(
        self,
        check: str = "reference_is_sound",
        asset: str = "symbols",
        *,
        passed: bool = False,
        severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
        metadata: dict[str, float] | None = None,
    ) -> None:
        """An evaluation without a run."""
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(asset),
                check_name=check,
                passed=passed,
                severity=severity,
                metadata=metadata,
            )
        )


@pytest.fixture
def watch(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Sensors that have looked at everything so far and found nothing."""
    monkeypatch.setattr(events, "SETTLED_AFTER", 0.0)
    watch = Watch(pipeline)
    for name in ("asset_check_alerts", "run_failure_alerts", "operation_alerts"):
        watch.tick(name)
    pipeline.market.execute("TRUNCATE assetclass.alert CASCADE")
    return watch
