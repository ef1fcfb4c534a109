"""The jobs that look after backups, run as the daemon runs them."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure

CORRECTION = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def corrected(pipeline: Pipeline) -> Pipeline:
    """A correction of all 41 rows."""
    request = CorrectionRequest(CORRECTION, CorrectionOptions())
    operation = correct(pipeline.market.dsn, pipeline.settings, request)
    assert operation.records_corrected == 41
    return pipeline


def run_job(pipeline: Pipeline, name: str, config: dict[str, Any]) -> dg.ExecuteInProcessResult:
    job = pipeline.defs.resolve_job_def(name)
    (op,) = job.nodes
    return job.execute_in_process(
        run_config={
            "ops": {op.name: {"config": config}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        instance=pipeline.instance,
        tags={"user": "grace"},
        raise_on_error=False,
    )


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    assert result.success
    (output,) = (event for event in result.all_events if event.is_successful_output)
    return {
        name: getattr(value, "records", value.value)
        for name, value in output.step_output_data.metadata.items()
    }


def rows_of(table: Any) -> list[dict[str, Any]]:
    return [dict(record.data) for record in table]


def test_cleanup_shows_what_went_and_what_stayed(corrected: Pipeline) -> None:
    market = corrected.market
    kept = metadata_of(run_job(corrected, "backup_cleanup_job", {}))
    assert (kept["dropped"], kept["kept"], kept["bytes_freed"]) == (0, 1, 0)
    (row,) = rows_of(kept["kept_tables"])
    assert row["correction_id"] == CORRECTION
    assert row["why"].startswith("expires at")

    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    would = metadata_of(run_job(corrected, "backup_cleanup_job", {"dry_run": True}))
    assert (would["dropped"], len(market.backup_tables())) == (0, 1)
    went = metadata_of(run_job(corrected, "backup_cleanup_job", {}))
    assert went["dropped"] == 1
    assert went["bytes_freed"] > 0
    assert rows_of(went["dropped_tables"])[0]["archive"] == f"{CORRECTION}.parquet"
    assert market.backup_tables() == []
    assert market.value("SELECT dropped_by FROM assetclass.backup") == "grace"


def test_a_cleanup_that_cannot_archive_fails_the_run(corrected: Pipeline, tmp_path: Path) -> None:
    blocked = tmp_path / "archive"
    blocked.write_text("a file, no directory")
    settings = corrected.settings.model_copy(update={"archive_directory": blocked})
    pipeline = Pipeline(corrected.market, corrected.instance, settings)
    pipeline.market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    result = run_job(pipeline, "backup_cleanup_job", {})
    assert not result.success
    said = failure(result)  # type: ignore[arg-type] # has all_events too
    assert "1 of 1 backups could not be cleaned up" in said
    assert "ASSETCLASS_ARCHIVE_DIRECTORY" in said
    assert len(pipeline.market.backup_tables()) == 1


def test_drill_shows_rows_and_time(corrected: Pipeline) -> None:
    shown = metadata_of(run_job(corrected, "recovery_drill_job", {}))
    assert (shown["correction_id"], shown["restored"], shown["different"]) == (CORRECTION, 41, 0)
    assert shown["within_limit"] is True
    assert shown["restore_seconds"] > 0
    named = metadata_of(run_job(corrected, "recovery_drill_job", {"correction_id": CORRECTION}))
    assert named["restored"] == 41


def test_a_drill_that_does_not_match_fails_the_run(corrected: Pipeline) -> None:
    corrected.market.execute("UPDATE assetclass.backup SET checksum = checksum || '7'")
    result = run_job(corrected, "recovery_drill_job", {})
    assert not result.success
    assert "checksum differs" in failure(result)  # type: ignore[arg-type] # has all_events too


def test_without_a_backup_the_drill_says_so(pipeline: Pipeline) -> None:
    assert metadata_of(run_job(pipeline, "recovery_drill_job", {})) == {"result": "no backup"}
