"""`self_healing_correction`: when it asks for a correction by itself, and why it does not."""

from datetime import timedelta

import dagster as dg
import pytest

from assetclass_pipeline.defs.runs import REASON_TAG
from assetclass_pipeline.defs.sensors import self_healing_correction
from assetclass_pipeline.engine.correction import CorrectionRequest, plan
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure
from assetclass_pipeline_tests.defs.sensors.conftest import Watch
from assetclass_pipeline_tests.engine.runs import keep_alive

SENSOR = "self_healing_correction"
ACTIVE = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    """Everything is damaged and measured; what earlier tests tried is forgotten."""
    tried = dg.RunsFilter(tags={"dagster/sensor_name": SENSOR})
    for run in pipeline.instance.get_runs(tried):
        pipeline.instance.delete_run(run.run_id)
    result = pipeline.launch(job="data_quality_job")
    assert result.success, failure(result)
    return pipeline


def ask(watch: Watch) -> dg.RunRequest | str:
    """What it asks for, or why it does not."""
    decided = watch.tick(SENSOR)
    return decided.run_requests[0] if decided.run_requests else decided.skip_message or ""


def why_not(watch: Watch) -> str:
    said = ask(watch)
    assert isinstance(said, str)
    return said


def carry_out(watch: Watch, request: dg.RunRequest | str) -> dg.JobExecutionResult:
    """The run that the daemon makes of a request."""
    assert isinstance(request, dg.RunRequest)
    tags = {**request.tags, "dagster/sensor_name": SENSOR}
    return watch.pipeline.launch(tags=tags)


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time after which a second try is allowed has passed."""
    monkeypatch.setattr(self_healing_correction, "AGAIN_AFTER", timedelta(0))


def test_it_is_off_by_default(pipeline: Pipeline) -> None:
    sensor = pipeline.defs.resolve_sensor_def(SENSOR)
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED


def test_it_asks_for_the_damaged_months_once_for_each_measurement(watch: Watch) -> None:
    market = watch.pipeline.market
    market.execute(
        "UPDATE {} SET asset_class = 'STOCK' "
        """WHERE "timestamp" NOT BETWEEN '2023-02-01' AND '2023-04-01'""",
        market.market_identifier,
    )
    request = ask(watch)
    assert isinstance(request, dg.RunRequest)
    assert request.tags["dagster/asset_partition_range_start"] == "2023-02-01"
    assert request.tags["dagster/asset_partition_range_end"] == "2023-03-01"
    assert "100.0 %" in request.tags[REASON_TAG]
    again = ask(watch)
    assert isinstance(again, dg.RunRequest)
    assert again.run_key == request.run_key
    result = carry_out(watch, request)
    assert result.success, failure(result)
    operation = watch.pipeline.operation(result.run_id)
    assert operation.requested_by == f"sensor {SENSOR}"
    assert operation.reason == request.tags[REASON_TAG]
    assert "up to 10 %" in why_not(watch)


def test_a_number_that_a_restored_database_gives_out_again_is_another_measurement(
    watch: Watch,
) -> None:
    first = ask(watch)
    watch.pipeline.market.execute(
        "UPDATE assetclass.quality_measurement SET measured_at = measured_at + interval '1 minute'"
    )
    second = ask(watch)
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.run_key != second.run_key, "Dagster remembers keys for ever"


def test_without_a_measurement(watch: Watch) -> None:
    watch.pipeline.market.execute("TRUNCATE assetclass.quality_measurement")
    assert "never measured" in why_not(watch)


def test_an_old_measurement_says_nothing_about_now(watch: Watch) -> None:
    watch.pipeline.market.execute(
        "UPDATE assetclass.quality_measurement SET measured_at = measured_at - interval '27 hours'"
    )
    assert "too old" in why_not(watch)


@pytest.mark.parametrize(("correctable", "asks"), [(10, False), (11, True)])
def test_ten_percent_are_nothing_to_do(watch: Watch, correctable: int, *, asks: bool) -> None:
    watch.pipeline.market.execute(
        "UPDATE assetclass.quality_measurement SET total_records = 100, correctable = %s",
        values=(correctable,),
    )
    assert isinstance(ask(watch), dg.RunRequest) is asks


def test_not_while_an_operation_is_active(watch: Watch) -> None:
    settings = watch.pipeline.settings
    request = CorrectionRequest(ACTIVE, CorrectionOptions(), requested_by="grace")
    plan(watch.pipeline.market.dsn, settings, request, park=False)
    keep_alive(watch.pipeline.market)
    assert ACTIVE in why_not(watch)


def test_not_while_a_correction_is_about_to_begin(watch: Watch) -> None:
    job = watch.pipeline.defs.resolve_job_def("correction_job")
    run = watch.instance.create_run_for_job(job)
    try:
        assert run.run_id in why_not(watch)
    finally:
        watch.instance.report_run_canceled(run)


def test_not_by_a_reference_that_cannot_be_relied_on(watch: Watch) -> None:
    market = watch.pipeline.market
    market.execute("DELETE FROM {}", market.symbols_identifier)
    assert "not sound" in why_not(watch)


def test_not_so_soon_after_its_last_try(watch: Watch) -> None:
    carry_out(watch, ask(watch))
    market = watch.pipeline.market
    market.execute("UPDATE {} SET asset_class = NULL", market.market_identifier)
    watch.pipeline.launch(job="data_quality_job")
    assert "less than 12 hours ago" in why_not(watch)


def test_again_once_its_last_try_did_help(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(watch, ask(watch))
    market = watch.pipeline.market
    market.execute("UPDATE {} SET asset_class = NULL", market.market_identifier)
    watch.pipeline.launch(job="data_quality_job")
    later(monkeypatch)
    assert isinstance(ask(watch), dg.RunRequest)


def test_not_again_when_it_did_not(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask(watch)
    assert isinstance(request, dg.RunRequest)
    run = watch.instance.create_run_for_job(
        watch.pipeline.defs.resolve_job_def("correction_job"),
        tags={**request.tags, "dagster/sensor_name": SENSOR},
    )
    watch.instance.report_run_failed(run)
    later(monkeypatch)
    assert "did not help" in why_not(watch)
    # A person has mended it.
    assert watch.pipeline.launch().success
    market = watch.pipeline.market
    market.execute("UPDATE {} SET asset_class = NULL", market.market_identifier)
    watch.pipeline.launch(job="data_quality_job")
    assert isinstance(ask(watch), dg.RunRequest)
