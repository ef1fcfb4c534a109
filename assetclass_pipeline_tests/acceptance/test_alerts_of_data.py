"""Alerts about data: real measurements and checks, the daemon killed while they are made."""

import dagster as dg
import pytest

from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline_tests.acceptance.alert_table import hand_in
from assetclass_pipeline_tests.acceptance.watched import Story, Watched

pytestmark = [
    pytest.mark.dagster_services,
    pytest.mark.timeout(600),
]

SETTINGS: dict[str, str] = {}
ROWS = 400

STORIES = {
    "low": Story(
        AlertType.LOW_DATA_QUALITY,
        "low_data_quality",
        "quality score below 90 %",
        "classes of 30 % of the rows changed, data_quality_job",
    ),
    "degraded": Story(
        AlertType.DATA_QUALITY_DEGRADED,
        "data_quality_degraded",
        "score below the median of past reports",
        "three good reports, then the same damage",
    ),
    "orphaned": Story(
        AlertType.HIGH_ORPHANED_RECORDS,
        "high_orphaned_records",
        "more than 10 % of the rows orphaned",
        "12 % of the rows under a ticker that symbols lacks",
    ),
    "failed check": Story(
        AlertType.ASSET_CHECK_FAILED,
        "check:quality_report:integrity_at_least_90",
        "a check failed in a run that succeeded",
        "the same damage, data_quality_job",
    ),
    "runless check": Story(
        AlertType.ASSET_CHECK_FAILED,
        "check:symbols:reference_is_sound",
        "an evaluation without a run failed",
        "reported to the instance",
    ),
    "materialize all": Story(
        AlertType.ASSET_CHECK_FAILED,
        "check:quality_report:completeness_at_least_95",
        "a check failed in a run of another job",
        "6 % of the classes missing, __ASSET_JOB",
        # It is found before and after a correction would have run, as warning and as error.
        escalates=True,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def played(watched: Watched) -> None:
    """All stories from beginning to end, side by side."""
    market, table = watched.market, watched.market.market_identifier
    market.fill(ROWS, missing_every=ROWS + 1)
    for _ in range(3):
        watched.launch("data_quality_job")

    at_once = ("low", "degraded", "orphaned", "failed check")
    market.execute("UPDATE {} SET asset_class = 'BOND' WHERE id <= 120", table)
    market.execute("UPDATE {} SET symbol = 'GONE' WHERE id BETWEEN 121 AND 168", table)
    watched.launch("data_quality_job")
    measured_at = market.value("SELECT max(measured_at) FROM assetclass.quality_measurement")
    watched.came_true(measured_at, "low", "degraded", "orphaned")
    watched.came_true(watched.failed_at("quality_report", "integrity_at_least_90"), "failed check")
    _report(watched, passed=False)
    watched.came_true(watched.failed_at("symbols", "reference_is_sound"), "runless check")
    watched.wait_told(*at_once, "runless check")

    watched.kill_daemon()
    market.execute("UPDATE {} SET asset_class = NULL WHERE id BETWEEN 201 AND 224", table)
    watched.launch("__ASSET_JOB", assets=["integrity_report", "quality_report"])
    _report(watched, passed=False)
    seen_at = watched.failed_at("integrity_report", "completeness_at_least_95")
    watched.came_true(seen_at, "materialize all")
    watched.wait_told("materialize all")
    watched.launch("__ASSET_JOB", assets=["integrity_report", "quality_report"])
    watched.wait_again(*STORIES)

    market.execute("UPDATE {} SET symbol = 'S' || id % 20 WHERE symbol = 'GONE'", table)
    market.execute("UPDATE {} SET asset_class = 'CLASS_' || id % 2", table)
    watched.launch("data_quality_job")
    watched.wait_over(*STORIES)


def _report(watched: Watched, *, passed: bool) -> None:
    watched.pipeline.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("symbols"), check_name="reference_is_sound", passed=passed
        )
    )


@pytest.mark.parametrize("name", STORIES)
def test_people_are_told_once_in_time_and_once_that_it_is_over(
    name: str, watched: Watched, request: pytest.FixtureRequest
) -> None:
    hand_in(request.node, watched.assert_told_once(name))


def test_nobody_is_told_of_anything_else(watched: Watched) -> None:
    watched.assert_nothing_else()
