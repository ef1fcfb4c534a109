"""What the API adds to the metrics: ages that only Dagster's records tell."""

from typing import cast

import psycopg
import pytest

from assetclass_pipeline.api.watch import Watch
from assetclass_pipeline.database import schema
from assetclass_pipeline.defs.dagster_probes import DagsterWatch
from assetclass_pipeline.monitoring.health import CachedHealth
from assetclass_pipeline.monitoring.metrics import CachedMetrics, collect
from assetclass_pipeline.settings import load_settings


class Records:
    """Dagster's, as far as the metrics ask."""

    def __init__(self, beat: float | None, ticks: dict[str, float | None]) -> None:
        self._beat, self._ticks = beat, ticks

    def daemon_heartbeat_age(self) -> float | None:
        return self._beat

    def tick_ages(self) -> dict[str, float | None]:
        return self._ticks


@pytest.fixture
def metrics(database_url: str) -> CachedMetrics:
    settings = load_settings()
    schema.upgrade(database_url, settings)
    with psycopg.connect(database_url, autocommit=True) as connection:
        found = collect(connection, settings)
    return CachedMetrics(lambda: found)


def ages(metrics: CachedMetrics, records: Records) -> list[str]:
    watch = Watch(cast(CachedHealth, None), metrics, cast(DagsterWatch, records))
    lines = watch.exposition().decode().splitlines()
    return [line for line in lines if "_age_seconds{" in line]


def test_sensors_and_the_daemon_tell_their_age_and_schedules_do_not(
    metrics: CachedMetrics,
) -> None:
    ticks = {"operation_alerts": 12.5, "asset_check_alerts": None, "nightly_correction": 80_000.0}
    assert ages(metrics, Records(3.5, ticks)) == [
        'assetclass_daemon_heartbeat_age_seconds{daemon="dagster"} 3.5',
        'assetclass_sensor_tick_age_seconds{sensor="operation_alerts"} 12.5',
    ]


def test_what_nobody_knows_has_no_series(metrics: CachedMetrics) -> None:
    """So that the rule on an absent daemon sees it."""
    assert ages(metrics, Records(None, {})) == []
