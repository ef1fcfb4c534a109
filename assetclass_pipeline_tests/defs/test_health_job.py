"""The health check as the daemon runs it: a result, never a failed run."""

from typing import Any

import dagster as dg
from pydantic import SecretStr

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.defs.health import health_for_alerts
from assetclass_pipeline.settings import HealthSettings
from assetclass_pipeline_tests.defs.conftest import Pipeline
from assetclass_pipeline_tests.defs.test_upkeep import metadata_of, rows_of


def check(pipeline: Pipeline, **settings: object) -> dict[str, Any]:
    # A busy machine is slow, and not ill.
    patient = HealthSettings(timeout=30)
    chosen = pipeline.settings.model_copy(update={"health": patient, **settings})
    result = (
        build_defs(settings=chosen)
        .resolve_job_def("health_check_job")
        .execute_in_process(
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            instance=pipeline.instance,
        )
    )
    return metadata_of(result)


def test_what_is_well_and_what_is_not(pipeline: Pipeline) -> None:
    found = check(pipeline)
    components = {row["component"]: row for row in rows_of(found["components"])}
    assert components["database"]["healthy"] is True
    assert components["marketTables"]["healthy"] is True
    # No daemon runs beside this test.
    assert components["daemon"]["healthy"] is False
    assert found["result"] == "unhealthy"
    assert "daemon" in found["failing"].split(", ")
    assert found["failing_components"] == len(found["failing"].split(", "))


def test_a_database_that_is_away_is_a_result_too(pipeline: Pipeline) -> None:
    found = check(pipeline, database_url=SecretStr("postgresql://nobody:secret@127.0.0.1:1/none"))
    assert found["result"] == "unhealthy"
    (row,) = (row for row in rows_of(found["components"]) if row["component"] == "database")
    assert "cannot be reached" in row["message"]
    assert "secret" not in str(rows_of(found["components"]))


def test_no_embedded_server_is_started(pipeline: Pipeline, tmp_path: Any) -> None:
    found = check(pipeline, database_url=None, home=tmp_path / "home")
    (row,) = rows_of(found["components"])
    assert row["component"] == "database"
    assert "does not run" in row["message"]
    assert not (tmp_path / "home").exists()


def test_the_schedule_has_the_guides_quarter_of_an_hour(pipeline: Pipeline) -> None:
    schedule = pipeline.defs.resolve_schedule_def("health_check")
    assert schedule.cron_schedule == "*/15 * * * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_alerts_leave_failed_ticks_to_their_own_alert(pipeline: Pipeline) -> None:
    health = health_for_alerts(pipeline.settings)
    assert "ticks" not in health.components
    assert "sensors" in health.components
    assert not health.is_healthy
