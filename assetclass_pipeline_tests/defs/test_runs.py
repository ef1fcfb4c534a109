"""Runs as people launch them: a range, a month, everything, a dry run, alone, again, stopped."""

import dagster as dg
import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, plan
from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.defs.conftest import Pipeline, checks_of, failure, range_tags

BACKUP, CORRECTED = "market_data_backup", "corrected_market_data"


def missing_months(pipeline: Pipeline) -> set[str]:
    found = pipeline.market.rows(
        """SELECT DISTINCT to_char("timestamp", 'YYYY-MM') FROM {} WHERE asset_class IS NULL""",
        pipeline.market.market_identifier,
    )
    return {month for (month,) in found}


def test_a_range_of_months_as_the_ui_launches_it(pipeline: Pipeline) -> None:
    tags = range_tags("2023-02-01", "2023-03-01") | {"user": "ada"}
    result = pipeline.launch(tags=tags)
    assert result.success
    assert missing_months(pipeline) == {"2019-05", "2023-01", "2023-04"}
    assert pipeline.months() == pipeline.months(BACKUP) == {"2023-02-01", "2023-03-01"}
    operation = pipeline.operation(result.run_id)
    assert (operation.status, operation.requested_by) == (Status.SUCCEEDED, "ada")
    assert operation.records_corrected == 20
    by_month = {
        event.partition: event.materialization.metadata["records_corrected"].value
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(CORRECTED)
    }
    assert by_month == {"2023-02-01": 10, "2023-03-01": 10}


def test_one_month(pipeline: Pipeline) -> None:
    result = pipeline.launch(tags={"dagster/partition": "2023-04-01"})
    assert result.success
    assert missing_months(pipeline) == {"2019-05", "2023-01", "2023-02", "2023-03"}
    assert pipeline.months() == {"2023-04-01"}


def test_rows_before_the_first_month_belong_to_it(pipeline: Pipeline) -> None:
    assert pipeline.launch(tags={"dagster/partition": "2023-01-01"}).success
    assert missing_months(pipeline) == {"2023-02", "2023-03", "2023-04"}


def test_without_a_partition_every_row_and_every_month(pipeline: Pipeline) -> None:
    assert pipeline.launch(tags={"dagster/partition": "2023-04-01"}).success
    result = pipeline.launch()
    assert result.success
    assert missing_months(pipeline) == set()
    assert "2023-01-01" in pipeline.months()
    assert len(pipeline.months()) > 40
    assert pipeline.operation(result.run_id).records_corrected == 31


def test_a_dry_run_turns_no_month_green(pipeline: Pipeline) -> None:
    before = pipeline.market.versions()
    result = pipeline.launch(options={"dry_run": True})
    assert result.success
    assert pipeline.market.versions() == before
    assert pipeline.months() == pipeline.months(BACKUP) == set()
    assert (BACKUP, "backup_is_complete") not in checks_of(result)
    operation = pipeline.operation(result.run_id)
    assert (operation.status, operation.records_planned) == (Status.SUCCEEDED, 41)
    shown = [event for event in result.all_events if event.is_asset_observation]
    assert {event.asset_key.to_user_string() for event in shown if event.asset_key} == {
        BACKUP,
        CORRECTED,
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"timeout": "48:00:00"}, "timeout"),
        ({"pace": "reckless"}, "pace"),
        ({"overwrite_existing_values": True}, "onlyProcessNullAssetClass"),
        ({"retry": {"tries": 99}}, "retry.tries"),
    ],
)
def test_the_launchpad_cannot_pass_what_the_options_forbid(
    pipeline: Pipeline, options: dict[str, object], names: str
) -> None:
    result = pipeline.launch(options=options, tags={"dagster/partition": "2023-04-01"})
    assert not result.success
    assert names in failure(result)
    assert pipeline.operations() == []


@pytest.mark.parametrize("options", [{}, {"batch_size": None, "workers": None}])
def test_a_batch_size_left_open_in_the_launchpad_is_chosen_by_the_rows(
    pipeline: Pipeline, options: dict[str, object]
) -> None:
    result = pipeline.launch(options=options, tags={"dagster/partition": "2023-04-01"})
    assert result.success
    operation = pipeline.operation(result.run_id)
    assert operation.options["batchSize"] is None
    assert operation.records_corrected == 10
    assert operation.pacing is not None
    assert 0 < operation.pacing.batch_size <= 1000


def test_corrected_market_data_alone_makes_its_own_backup(pipeline: Pipeline) -> None:
    result = pipeline.launch(
        job="__ASSET_JOB", assets=[CORRECTED], tags=range_tags("2023-01-01", "2023-04-01")
    )
    assert result.success
    assert missing_months(pipeline) == set()
    assert pipeline.months(BACKUP) == set()
    assert pipeline.operation(result.run_id).backup_table in pipeline.market.backup_tables()


def test_a_backup_alone_waits_and_blocks_nobody(pipeline: Pipeline) -> None:
    tags = range_tags("2023-01-01", "2023-04-01")
    parked = pipeline.launch(job="__ASSET_JOB", assets=[BACKUP], tags=tags)
    assert parked.success
    assert pipeline.operation(parked.run_id).status is Status.PLANNED
    assert len(missing_months(pipeline)) == 5
    other = pipeline.launch(tags={"dagster/partition": "2023-04-01"})
    assert other.success
    resumed = pipeline.launch(
        job="__ASSET_JOB", assets=[CORRECTED], tags=tags, parent=pipeline.run(parked)
    )
    assert resumed.success
    assert missing_months(pipeline) == set()
    assert pipeline.operation(parked.run_id).status is Status.SUCCEEDED
    assert pipeline.operation(parked.run_id).skipped_by_reason


def test_materialize_all_is_one_run_of_everything(pipeline: Pipeline) -> None:
    """A backfill launches the unpartitioned assets and the months in runs of their own."""
    first = pipeline.launch(job="__ASSET_JOB", assets=["integrity_report"])
    months = pipeline.launch(
        job="__ASSET_JOB", assets=[BACKUP, CORRECTED], tags=range_tags("2023-01-01", "2023-04-01")
    )
    last = pipeline.launch(job="__ASSET_JOB", assets=["quality_report"])
    assert (first.success, months.success, last.success) == (True, True, True)
    assert all(evaluation.passed for evaluation in checks_of(last).values())


def test_re_executing_a_failed_run_goes_on_with_its_operation(pipeline: Pipeline) -> None:
    market = pipeline.market
    market.execute(
        "ALTER TABLE {} ADD CONSTRAINT no_crypto CHECK (asset_class <> 'CRYPTO')",
        market.market_identifier,
    )
    failed = pipeline.launch(options={"batch_size": 1, "workers": 1, "retry": {"tries": 1}})
    assert not failed.success
    assert "no_crypto" in failure(failed) or "constraint" in failure(failed)
    assert "UPDATE" not in failure(failed)
    assert pipeline.operation(failed.run_id).status is Status.FAILED
    market.execute("ALTER TABLE {} DROP CONSTRAINT no_crypto", market.market_identifier)
    again = pipeline.launch(parent=pipeline.run(failed))
    assert again.success
    assert missing_months(pipeline) == set()
    assert [operation.correction_id for operation in pipeline.operations()] == [failed.run_id]
    assert pipeline.operation(failed.run_id).run_id == again.run_id


def test_re_executing_a_run_that_ended_well_is_a_new_operation(pipeline: Pipeline) -> None:
    first = pipeline.launch()
    again = pipeline.launch(parent=pipeline.run(first))
    assert again.success
    operation = pipeline.operation(again.run_id)
    assert (operation.retry_of, operation.records_planned) == (first.run_id, 0)


def test_a_second_operation_is_refused_by_name(pipeline: Pipeline) -> None:
    active = "11111111-2222-4333-8444-555555555555"
    plan(
        pipeline.market.dsn,
        pipeline.settings,
        CorrectionRequest(active, CorrectionOptions(), requested_by="grace"),
        park=False,
    )
    pipeline.market.execute(
        "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1', "
        "beat_at = now() + interval '1 hour'"
    )
    result = pipeline.launch()
    assert not result.success
    assert active in failure(result)
    assert len(missing_months(pipeline)) == 5


def test_a_missing_table_is_named_in_the_run(pipeline: Pipeline) -> None:
    pipeline.market.execute("DROP TABLE {}", pipeline.market.market_identifier)
    result = pipeline.launch()
    assert not result.success
    assert "public.market_data does not exist" in failure(result)
