"""`run_failure_alerts`: runs that failed, whoever ended them, unless another alert tells of it."""

import dagster as dg
import pytest

from assetclass_pipeline.defs.assets import correction
from assetclass_pipeline.defs.checks import backup_result
from assetclass_pipeline.defs.sensors import run_failure_alerts
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure
from assetclass_pipeline_tests.defs.sensors.conftest import Watch

SENSOR = "run_failure_alerts"


def given_up(pipeline: Pipeline, job: str, message: str = "Its process is gone.") -> dg.DagsterRun:
    """A run that Dagster itself ended, before any step."""
    run = pipeline.instance.create_run_for_job(pipeline.defs.resolve_job_def(job))
    pipeline.instance.report_run_failed(run, message)
    return run


def test_a_run_that_dagster_gave_up(watch: Watch) -> None:
    run = given_up(watch.pipeline, "data_quality_job")
    watch.tick(SENSOR)
    [alert] = watch.alerts().values()
    assert (alert.cause, alert.alert_type) == ("run_failed:data_quality_job", AlertType.RUN_FAILED)
    assert alert.run_id == run.run_id
    assert alert.summary.endswith("Its process is gone.")
    # Once told, and over when the job succeeds.
    watch.tick(SENSOR)
    assert watch.alerts()[alert.cause].occurrences == 1
    result = watch.pipeline.launch(job="data_quality_job")
    assert result.success, failure(result)
    watch.tick(SENSOR)
    assert watch.alerts() == {}


def test_a_step_that_failed_says_why_in_words_for_people(watch: Watch) -> None:
    market = watch.pipeline.market
    market.execute("ALTER TABLE {} RENAME TO market_gone", market.market_identifier)
    try:
        result = watch.pipeline.launch(job="data_quality_job")
    finally:
        market.execute("ALTER TABLE market_gone RENAME TO market_data")
    assert not result.success
    for sensor in (SENSOR, "asset_check_alerts", "operation_alerts"):
        watch.tick(sensor)
    # One trouble, one alert: not one for each check that could not be computed.
    [alert] = watch.alerts().values()
    assert alert.cause == "run_failed:data_quality_job"
    assert failure(result).splitlines()[0][:60] in alert.summary


@pytest.mark.parametrize(
    ("job", "alert_type"),
    [
        ("backup_cleanup_job", AlertType.BACKUP_CLEANUP_FAILED),
        ("recovery_drill_job", AlertType.RECOVERY_DRILL_FAILED),
    ],
)
def test_upkeep_that_failed(watch: Watch, job: str, alert_type: AlertType) -> None:
    given_up(watch.pipeline, job)
    watch.tick(SENSOR)
    [alert] = watch.alerts().values()
    assert alert.alert_type is alert_type
    assert watch.pipeline.launch(job=job).success
    watch.tick(SENSOR)
    assert watch.alerts() == {}


def test_a_failed_operation_explains_its_run(watch: Watch) -> None:
    market = watch.pipeline.market
    market.execute(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$"
    )
    market.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION refuse()",
        market.market_identifier,
    )
    result = watch.pipeline.launch()
    assert not result.success
    for sensor in (SENSOR, "asset_check_alerts", "operation_alerts"):
        watch.tick(sensor)
    told = {alert.alert_type for alert in watch.alerts().values() if alert.run_id == result.run_id}
    assert AlertType.OPERATION_FAILED in told
    assert AlertType.RUN_FAILED not in told
    assert not any("no_row_lost" in cause for cause in watch.alerts())
    market.execute("DROP TRIGGER refuse ON {}", market.market_identifier)
    again = watch.pipeline.launch(parent=watch.pipeline.run(result))
    assert again.success, failure(again)
    for sensor in (SENSOR, "asset_check_alerts", "operation_alerts"):
        watch.tick(sensor)
    assert watch.alerts() == {}


def test_a_blocking_check_explains_its_run(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        correction,
        "backup_result",
        lambda asset, operation, found, settings: backup_result(
            asset, operation, found + 1, settings
        ),
    )
    result = watch.pipeline.launch()
    assert not result.success
    for sensor in (SENSOR, "asset_check_alerts", "operation_alerts"):
        watch.tick(sensor)
    told = [cause for cause, alert in watch.alerts().items() if alert.severity.value == "high"]
    assert told == ["check:market_data_backup:backup_is_complete"]
    assert not any(cause.startswith("run_failed:") for cause in watch.alerts())


@dg.op
def nothing() -> None:
    """Of somebody else."""


@dg.job
def job_of_others() -> None:
    nothing()


def test_runs_of_others_are_none_of_our_business(watch: Watch) -> None:
    run = watch.instance.create_run_for_job(job_of_others)
    watch.instance.report_run_failed(run)
    watch.tick(SENSOR)
    assert watch.alerts() == {}


def test_a_run_of_somebody_elses_job_that_contains_our_assets(watch: Watch) -> None:
    definition = watch.pipeline.defs.resolve_job_def("__ASSET_JOB")
    subset = definition.get_subset(asset_selection=frozenset({dg.AssetKey("quality_report")}))
    run = watch.instance.create_run_for_job(subset, asset_selection=subset.asset_selection)
    watch.instance.report_run_failed(run)
    watch.tick(SENSOR)
    assert watch.alerts().keys() == {"run_failed:__ASSET_JOB"}


def test_a_cancelled_run_is_no_failure(watch: Watch) -> None:
    run = watch.instance.create_run_for_job(watch.pipeline.defs.resolve_job_def("correction_job"))
    watch.instance.report_run_canceled(run)
    watch.tick(SENSOR)
    assert watch.alerts() == {}


def test_a_run_that_was_deleted_meanwhile_is_passed_over(watch: Watch) -> None:
    gone = given_up(watch.pipeline, "data_quality_job")
    watch.instance.delete_run(gone.run_id)
    given_up(watch.pipeline, "backup_cleanup_job")
    watch.tick(SENSOR)
    assert watch.alerts().keys() == {"run_failed:backup_cleanup_job"}


@pytest.mark.parametrize(
    ("outcomes", "most", "is_open"), [("fffsfs", 2, False), ("fsf", 200, True)]
)
def test_failures_and_successes_are_judged_in_their_order(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, outcomes: str, most: int, *, is_open: bool
) -> None:
    # So small a batch that one of failures reaches far beyond the successes in between.
    monkeypatch.setattr(run_failure_alerts, "MOST_EVENTS", most)
    for outcome in outcomes:
        run = watch.instance.create_run_for_job(
            watch.pipeline.defs.resolve_job_def("data_quality_job")
        )
        if outcome == "f":
            watch.instance.report_run_failed(run)
        else:
            watch.instance.report_dagster_event(
                dg.DagsterEvent(
                    event_type_value=dg.DagsterEventType.RUN_SUCCESS.value,
                    job_name=run.job_name,
                ),
                run_id=run.run_id,
            )
    watch.tick(SENSOR)
    assert bool(watch.alerts()) is is_open
