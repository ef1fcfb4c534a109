"""Alerts about runs, ticks, backups and components: what is broken here is really broken."""

import shutil
from typing import Final, LiteralString

import dagster as dg
import pytest
from psycopg import sql

from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline_tests.acceptance.alert_table import hand_in
from assetclass_pipeline_tests.acceptance.watched import Story, Watched
from assetclass_pipeline_tests.acceptance.watched_definitions import OBSTACLE

pytestmark = [
    pytest.mark.dagster_services,
    pytest.mark.timeout(600),
]

SETTINGS = {"ASSETCLASS_HEALTH__QUALITY_REPORT": "3600"}

STORIES = {
    "run": Story(
        AlertType.RUN_FAILED,
        "run_failed:weekly_performance_job",
        "a run failed that nothing else explains",
        "reports directory is a file",
    ),
    "tick": Story(
        AlertType.TICK_FAILED,
        "tick:brittle",
        "a sensor's newest tick failed",
        "a sensor that raises",
    ),
    "cleanup": Story(
        AlertType.BACKUP_CLEANUP_FAILED,
        "run_failed:backup_cleanup_job",
        "an expired backup could not go",
        "archive directory is a file",
    ),
    "drill": Story(
        AlertType.RECOVERY_DRILL_FAILED,
        "run_failed:recovery_drill_job",
        "the newest backup does not restore",
        "its checksum altered",
    ),
    "component": Story(
        AlertType.COMPONENT_UNHEALTHY,
        "component:qualityReport",
        "one component is not well, twice in a row",
        "newest quality report made two hours older",
        seen=1,
    ),
    "service": Story(
        AlertType.SERVICE_DEGRADED,
        "service",
        "several components are not well",
        "market table renamed and quality report aged, then a sensor off",
    ),
}
JOBS: Final = {
    "run": "weekly_performance_job",
    "cleanup": "backup_cleanup_job",
    "drill": "recovery_drill_job",
}
_STATE = """query($sensor: SensorSelector!) { sensorOrError(sensorSelector: $sensor) {
    ... on Sensor { sensorState { id } } } }"""
_STOP = "mutation($id: String!) { stopSensor(id: $id) { __typename } }"
_START = (
    "mutation($sensor: SensorSelector!) { startSensor(sensorSelector: $sensor) { __typename } }"
)
_SENSOR: Final = {
    "sensor": {
        "repositoryLocationName": "assetclass_pipeline",
        "repositoryName": "__repository__",
        "sensorName": "operation_requests",
    }
}


@pytest.fixture(scope="module", autouse=True)
def played(watched: Watched) -> None:
    """Five stories side by side, then the one of several components."""
    market, home = watched.market, watched.settings.home
    market.fill(100, missing_every=101)
    older, newer = (_corrected(watched) for _ in range(2))

    for blocked in (watched.settings.reports, watched.settings.archive):
        shutil.rmtree(blocked, ignore_errors=True)
        blocked.write_text("a file, no directory")
    expired = "UPDATE assetclass.backup SET expires_at = now() - interval '1 s'"
    market.execute(f"{expired} WHERE correction_id = %s", values=(older,))
    _alter_checksum(watched, "checksum || '7'", newer)
    _age_report(watched, "-2 h", "component")
    obstacle = home / OBSTACLE
    obstacle.touch()
    watched.came_true(obstacle.stat().st_mtime, "tick")
    for name, job in JOBS.items():
        watched.came_true(watched.ended_at(watched.launch(job, succeeds=False)), name)
    watched.wait_told(*JOBS, "tick", "component")

    watched.kill_daemon()
    for job in JOBS.values():
        watched.launch(job, succeeds=False)
    watched.wait_again(*JOBS, "tick", "component")

    for blocked in (watched.settings.reports, watched.settings.archive):
        blocked.unlink()
    _alter_checksum(watched, "left(checksum, -1)", newer)
    _age_report(watched, "2 h")
    obstacle.unlink()
    for job in JOBS.values():
        watched.launch(job)
    watched.wait_over(*JOBS, "tick", "component")

    with market.connection.transaction():
        market.execute("ALTER TABLE market_data RENAME TO market_data_away")
        _age_report(watched, "-2 h", "service")
    watched.wait_told("service")
    watched.kill_daemon()
    state = watched.up.ask(_STATE, **_SENSOR)["sensorOrError"]["sensorState"]
    assert watched.up.ask(_STOP, id=state["id"])["stopSensor"]["__typename"] != "PythonError"
    watched.wait_again("service")
    with market.connection.transaction():
        market.execute("ALTER TABLE market_data_away RENAME TO market_data")
        _age_report(watched, "2 h")
    watched.up.ask(_START, **_SENSOR)
    watched.wait_over("service")


def _corrected(watched: Watched) -> str:
    """The correctionId of a correction of a few rows, too few for any check to fail."""
    watched.market.execute("UPDATE market_data SET asset_class = NULL WHERE id <= 4")
    result: dg.JobExecutionResult = watched.launch("correction_job")
    return str(result.run_id)


def _alter_checksum(watched: Watched, altered: LiteralString, correction_id: str) -> None:
    watched.market.execute(
        "UPDATE assetclass.backup SET checksum = {} WHERE correction_id = %s",
        sql.SQL(altered),
        values=(correction_id,),
    )


def _age_report(watched: Watched, by: str, *names: str) -> None:
    [(now,)] = watched.market.execute(
        "WITH aged AS (UPDATE assetclass.quality_measurement "
        "SET measured_at = measured_at + %s::interval) SELECT clock_timestamp()",
        values=(by,),
    ).fetchall()
    watched.came_true(now, *names)


@pytest.mark.parametrize("name", STORIES)
def test_people_are_told_once_in_time_and_once_that_it_is_over(
    name: str, watched: Watched, request: pytest.FixtureRequest
) -> None:
    hand_in(request.node, watched.assert_told_once(name))


def test_nobody_is_told_of_anything_else(watched: Watched) -> None:
    watched.assert_nothing_else()
