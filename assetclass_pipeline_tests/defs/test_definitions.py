"""The code location as it is built: its assets, checks, jobs and schedules, and the options."""

import dagster as dg
import pytest
from syrupy.assertion import SnapshotAssertion

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.defs.dagster_probes import RELIED_SCHEDULES, RELIED_SENSORS
from assetclass_pipeline.defs.resources import (
    CorrectionOptionsResource,
    RetryConfig,
    correction_run_config,
)
from assetclass_pipeline.defs.rollback import RollbackConfig, rollback_run_config
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.options import CorrectionOptions, RetryOptions, parse_options
from assetclass_pipeline.model.rollback import RollbackOptions, parse_rollback_options
from assetclass_pipeline.settings import load_settings

# A database that nobody answers for: building the definitions must not connect.
NOWHERE = "postgresql://nobody:nothing@127.0.0.1:1/nowhere"


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs(settings=load_settings(database_url=NOWHERE))


def test_they_are_loadable_without_a_database(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_assets(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    graph = defs.resolve_asset_graph()
    shown = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        shown[key.to_user_string()] = {
            "description": node.description,
            "upstream": sorted(parent.to_user_string() for parent in node.parent_keys),
            "partitions": str(node.partitions_def) if node.partitions_def else None,
            "backfill_policy": node.backfill_policy.policy_type.name
            if node.backfill_policy
            else None,
            "group": node.group_name,
            "executable": node.is_executable,
            "owners": sorted(node.owners),
            "kinds": sorted(node.kinds),
            "pools": sorted(node.pools or []),
            "tags": {name: tag for name, tag in node.tags.items() if "kind" not in name},
        }
    assert shown == snapshot


def test_checks(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    graph = defs.resolve_asset_graph()
    checks = sorted(graph.asset_check_keys, key=str)
    assert {
        f"{key.asset_key.to_user_string()}.{key.name}": {
            "description": graph.get(key).description,
            "blocking": graph.get(key).blocking,
        }
        for key in checks
    } == snapshot


def test_jobs(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    shown = {}
    for name in (
        "correction_job",
        "data_quality_job",
        "backup_cleanup_job",
        "recovery_drill_job",
        "rollback_job",
        "health_check_job",
        "weekly_performance_job",
        "monthly_audit_job",
        "capacity_report_job",
    ):
        job = defs.resolve_job_def(name)
        layer = job.asset_layer
        shown[name] = {
            "description": job.description,
            "assets": sorted(key.to_user_string() for key in layer.selected_asset_keys),
            "executor": job.executor_def.name,
            "steps": sorted(node.name for node in job.nodes),
        }
    assert shown == snapshot


def test_schedules(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    assert {
        schedule.name: {
            "description": schedule.description,
            "job": schedule.job_name,
            "cron": schedule.cron_schedule,
            "zone": schedule.execution_timezone,
            "status": schedule.default_status.name,
        }
        for schedule in (
            defs.resolve_schedule_def("nightly_correction"),
            defs.resolve_schedule_def("daily_data_quality"),
            defs.resolve_schedule_def("weekly_backup_cleanup"),
            defs.resolve_schedule_def("quarterly_recovery_drill"),
            defs.resolve_schedule_def("health_check"),
            defs.resolve_schedule_def("weekly_performance"),
            defs.resolve_schedule_def("monthly_audit"),
            defs.resolve_schedule_def("quarterly_capacity"),
        )
    } == snapshot


def test_watchers(defs: dg.Definitions, snapshot: SnapshotAssertion) -> None:
    assert {
        sensor.name: {
            "description": sensor.description,
            "job": sensor.job_name if sensor.has_jobs else None,
            "interval": sensor.minimum_interval_seconds,
            "status": sensor.default_status.name,
        }
        for sensor in (
            defs.resolve_sensor_def("asset_check_alerts"),
            defs.resolve_sensor_def("run_failure_alerts"),
            defs.resolve_sensor_def("operation_alerts"),
            defs.resolve_sensor_def("service_health_alerts"),
            defs.resolve_sensor_def("self_healing_correction"),
        )
    } == snapshot


def test_schedules_follow_the_settings() -> None:
    settings = load_settings(
        database_url=NOWHERE, nightly_start="23:30", nightly_end="04:15", time_zone="Asia/Tokyo"
    )
    defs = build_defs(settings=settings)
    nightly = defs.resolve_schedule_def("nightly_correction")
    daily = defs.resolve_schedule_def("daily_data_quality")
    assert (nightly.cron_schedule, nightly.execution_timezone) == ("30 23 * * *", "Asia/Tokyo")
    assert (daily.cron_schedule, daily.execution_timezone) == ("15 4 * * *", "Asia/Tokyo")


def test_a_resource_can_be_replaced() -> None:
    gentle = CorrectionOptionsResource(pace="gentle")
    defs = build_defs(
        settings=load_settings(database_url=NOWHERE), resources={"correction_options": gentle}
    )
    assert (defs.resources or {})["correction_options"] is gentle


def test_the_launchpad_has_every_option_and_no_other() -> None:
    assert set(CorrectionOptionsResource.model_fields) == set(CorrectionOptions.model_fields)
    assert set(RetryConfig.model_fields) == set(RetryOptions.model_fields)


def test_every_option_is_described_in_the_launchpad() -> None:
    options = CorrectionOptionsResource.model_fields
    assert {name: field.description for name, field in options.items()} == {
        name: field.description for name, field in CorrectionOptions.model_fields.items()
    }
    assert all(field.description for field in RetryConfig.model_fields.values())


def test_the_launchpads_defaults_are_the_options_own() -> None:
    assert CorrectionOptionsResource().options() == CorrectionOptions()
    assert RetryOptions(**RetryConfig().model_dump()) == RetryOptions()


def test_limits_are_checked_again_when_a_run_starts() -> None:
    with pytest.raises(InvalidOptionsError, match="workers"):
        CorrectionOptionsResource(workers=99).options()


def test_options_survive_the_way_through_run_config() -> None:
    options = parse_options(
        {
            "batchSize": 7,
            "pace": "fast",
            "maxRecordsToProcess": 12,
            "targetSymbols": ["AAPL", "Ö"],
            "overwriteExistingValues": True,
            "timeout": "00:05:00",
            "retry": {"tries": 2, "firstWait": 0.5, "longestWait": 3},
            "workers": 3,
        }
    )
    config = correction_run_config(options)["resources"]["correction_options"]["config"]
    assert CorrectionOptionsResource(**config).options() == options


def test_the_launchpad_of_a_rollback_has_every_option_and_no_other() -> None:
    own = {"correction_id", "reason"}
    assert set(RollbackConfig.model_fields) == set(RollbackOptions.model_fields) | own
    described = {name: field.description for name, field in RollbackConfig.model_fields.items()}
    assert all(described.values())
    assert described == described | {
        name: field.description for name, field in RollbackOptions.model_fields.items()
    }
    config = RollbackConfig(correction_id="any", reason="a test")
    assert config.options() == RollbackOptions()


def test_a_rollbacks_options_survive_the_way_through_run_config() -> None:
    options = parse_rollback_options(
        {
            "validateAfterRollback": False,
            "targetSymbols": ["AAPL", "Ö"],
            "partitions": ["2024-03-01"],
            "rowIds": ["7"],
            "dryRun": True,
            "takeBackupValue": True,
            "batchSize": 7,
            "pace": "gentle",
            "workers": 3,
            "timeout": "00:05:00",
            "retry": {"tries": 2, "firstWait": 0.5, "longestWait": 3},
        }
    )
    config = rollback_run_config("any", options, reason="a test")["ops"]["rollback"]["config"]
    assert RollbackConfig(**config).options() == options


def test_health_relies_on_exactly_what_runs_by_itself(defs: dg.Definitions) -> None:
    sensors = {
        sensor.name
        for sensor in defs.sensors or ()
        if getattr(sensor, "default_status", None) is dg.DefaultSensorStatus.RUNNING
    }
    schedules = {
        schedule.name
        for schedule in defs.schedules or ()
        if getattr(schedule, "default_status", None) is dg.DefaultScheduleStatus.RUNNING
    }
    assert (sensors, schedules) == (set(RELIED_SENSORS), set(RELIED_SCHEDULES))
