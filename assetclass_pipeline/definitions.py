"""The Dagster entry point: `build_defs(...)` and `defs`, nothing else.

Building reads the environment and connects to nothing.
"""

import warnings
from collections.abc import Mapping

import dagster as dg

from assetclass_pipeline.defs.assets.correction import correction_assets
from assetclass_pipeline.defs.assets.quality import integrity_report_asset, quality_report_asset
from assetclass_pipeline.defs.assets.sources import source_specs
from assetclass_pipeline.defs.checks import reference_is_sound
from assetclass_pipeline.defs.health import (
    health_check_job,
    health_check_schedule,
    health_for_alerts,
)
from assetclass_pipeline.defs.jobs import correction_job, data_quality_job
from assetclass_pipeline.defs.partitions import monthly_partitions
from assetclass_pipeline.defs.reporting import REPORT_JOBS, report_schedules
from assetclass_pipeline.defs.resources import (
    CALENDAR,
    CORRECTION_OPTIONS,
    DATABASE,
    CorrectionOptionsResource,
    calendar_resource,
    database_resource,
)
from assetclass_pipeline.defs.rollback import rollback_job
from assetclass_pipeline.defs.schedules import (
    daily_data_quality_schedule,
    nightly_correction_schedule,
    quarterly_recovery_drill_schedule,
    weekly_backup_cleanup_schedule,
)
from assetclass_pipeline.defs.sensors.alert_notifications import alert_notifications
from assetclass_pipeline.defs.sensors.asset_check_alerts import asset_check_alerts
from assetclass_pipeline.defs.sensors.operation_alerts import operation_alerts
from assetclass_pipeline.defs.sensors.operation_requests import operation_requests
from assetclass_pipeline.defs.sensors.run_failure_alerts import run_failure_alerts
from assetclass_pipeline.defs.sensors.self_healing_correction import self_healing_correction
from assetclass_pipeline.defs.sensors.service_health_alerts import service_health_alerts_sensor
from assetclass_pipeline.defs.upkeep import backup_cleanup_job, recovery_drill_job
from assetclass_pipeline.settings import Settings, load_settings


def build_defs(
    *,
    settings: Settings | None = None,
    resources: Mapping[str, object] | None = None,
    executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """The whole code location; `settings` default to the environment's.

    `resources` replace those of the same name; `executor` runs what belongs to no job of ours,
    such as "Materialize all". Raises InvalidSettingsError.
    """
    settings = settings or load_settings()
    with warnings.catch_warnings():
        # Beta in the Dagster that the lock file pins; a test launches a range as the UI does.
        warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)
        correction = correction_assets(monthly_partitions(settings))
    built = dg.Definitions(
        assets=[
            *source_specs(settings),
            integrity_report_asset(settings),
            correction,
            quality_report_asset(settings),
        ],
        asset_checks=[reference_is_sound],
        jobs=[
            correction_job,
            rollback_job,
            data_quality_job,
            backup_cleanup_job,
            recovery_drill_job,
            health_check_job,
            *REPORT_JOBS,
        ],
        schedules=[
            nightly_correction_schedule(settings),
            daily_data_quality_schedule(settings),
            weekly_backup_cleanup_schedule(settings),
            quarterly_recovery_drill_schedule(settings),
            health_check_schedule(settings),
            *report_schedules(settings),
        ],
        sensors=[
            operation_requests,
            alert_notifications,
            asset_check_alerts,
            run_failure_alerts,
            operation_alerts,
            service_health_alerts_sensor(health_for_alerts),
            self_healing_correction,
        ],
        resources={
            DATABASE: database_resource(settings),
            CORRECTION_OPTIONS: CorrectionOptionsResource(),
            CALENDAR: calendar_resource(settings),
            **(resources or {}),
        },
        executor=executor,
    )
    with warnings.catch_warnings():
        # Dagster itself passes it on when it binds resources to the jobs of a sensor.
        warnings.filterwarnings("ignore", "Parameter `owners`", dg.BetaWarning)
        built.get_repository_def()
    return built


defs = build_defs()
