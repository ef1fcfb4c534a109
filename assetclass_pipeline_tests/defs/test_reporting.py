"""The jobs that write reports, run as the daemon runs them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assetclass_pipeline_tests.defs.conftest import Pipeline, failure

JOBS = {
    "weekly_performance_job": "performance",
    "monthly_audit_job": "audit",
    "capacity_report_job": "capacity",
}


@pytest.fixture
def pipeline(pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    """Reports go to a directory of this test's own."""
    update = {"reports_directory": tmp_path / "reports"}
    return replace(pipeline, settings=pipeline.settings.model_copy(update=update))


def metadata_of(result: dg.JobExecutionResult) -> dict[str, Any]:
    (output,) = (event for event in result.all_events if event.is_successful_output)
    return {key: value.value for key, value in output.step_output_data.metadata.items()}


@pytest.mark.parametrize("job", JOBS)
def test_the_page_and_its_data_are_written_and_shown(pipeline: Pipeline, job: str) -> None:
    assert pipeline.launch().success
    result = pipeline.launch(job=job)
    assert result.success, failure(result)
    shown = metadata_of(result)
    html, data = Path(shown["page"]), Path(shown["data"])
    assert html.parent == pipeline.settings.reports.resolve()
    assert html.name.startswith(f"{JOBS[job]}-")
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "generatedAt" in json.loads(data.read_text())
    expected = {
        "weekly_performance_job": {"operations": 1, "success_rate": 100, "records_corrected": 41},
        "monthly_audit_job": {"total_records": 41, "quality_score": 100, "operations": 1},
        "capacity_report_job": {"total_records": 41},
    }[job]
    assert {name: shown[name] for name in expected} == expected
    if job == "weekly_performance_job":
        assert "![rows corrected a day](data:image/svg+xml" in shown["curve"]


def test_another_period_is_a_choice(pipeline: Pipeline) -> None:
    ops = {"report_performance": {"config": {"since": "2020-01-01"}}}
    result = pipeline.launch(job="weekly_performance_job", ops=ops)
    assert result.success
    wrong = {"report_performance": {"config": {"since": "yesterday"}}}
    refused = pipeline.launch(job="weekly_performance_job", ops=wrong)
    assert "write a time like" in failure(refused)


def test_a_log_that_was_tampered_with_fails_the_audit_with_its_report_written(
    pipeline: Pipeline,
) -> None:
    assert pipeline.launch().success
    market = pipeline.market
    market.execute("ALTER TABLE assetclass.audit_log DISABLE TRIGGER refuse")
    (actor,) = market.rows("SELECT actor FROM assetclass.audit_log WHERE number = 1")[0]
    market.execute("UPDATE assetclass.audit_log SET actor = 'nobody' WHERE number = 1")
    try:
        result = pipeline.launch(job="monthly_audit_job")
    finally:
        market.connection.execute(
            "UPDATE assetclass.audit_log SET actor = %s WHERE number = 1", [actor]
        )
        market.execute("ALTER TABLE assetclass.audit_log ENABLE ALWAYS TRIGGER refuse")
    assert not result.success
    assert "entry 1 was changed" in failure(result)
    (html,) = pipeline.settings.reports.glob("audit-*.html")
    assert "Broken: entry 1 was changed" in html.read_text(encoding="utf-8")


def test_schedules_start_them_in_the_zone_of_the_settings(pipeline: Pipeline) -> None:
    settings = pipeline.settings.model_copy(update={"time_zone": "Europe/Istanbul"})
    defs = replace(pipeline, settings=settings).defs
    for name, job in (
        ("weekly_performance", "weekly_performance_job"),
        ("monthly_audit", "monthly_audit_job"),
        ("quarterly_capacity", "capacity_report_job"),
    ):
        schedule = defs.resolve_schedule_def(name)
        assert schedule.execution_timezone == "Europe/Istanbul"
        assert schedule.job_name == job
