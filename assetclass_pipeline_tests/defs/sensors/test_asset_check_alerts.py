"""`asset_check_alerts`: every evaluation of a check on our assets is judged once, in order."""

import secrets
import time
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from assetclass_pipeline.definitions import build_defs
from assetclass_pipeline.defs.checks import not_computed
from assetclass_pipeline.defs.sensors import asset_check_alerts, events
from assetclass_pipeline.model.alert import AlertType, Severity
from assetclass_pipeline.monitoring import watching
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure
from assetclass_pipeline_tests.defs.sensors.conftest import Watch

SENSOR = "asset_check_alerts"
SOUND = "check:symbols:reference_is_sound"
COMPLETE = "check:quality_report:completeness_at_least_95"


def test_failed_checks_of_a_run_that_succeeds(watch: Watch) -> None:
    pipeline = watch.pipeline
    result = pipeline.launch(job="data_quality_job")
    assert result.success, failure(result)
    watch.tick(SENSOR)
    found = watch.alerts()
    # Its quality score is the measurement's business, see operation_alerts.
    assert {cause: alert.severity for cause, alert in found.items()} == {
        COMPLETE: Severity.MEDIUM,
        "check:quality_report:correctable_at_most_10_percent": Severity.LOW,
    }
    alert = found[COMPLETE]
    assert alert.alert_type is AlertType.ASSET_CHECK_FAILED
    assert alert.run_id == result.run_id
    assert (alert.details["value"], alert.details["limit"]) == (0, 95)
    assert alert.details["worstSymbols"][0]["symbol"] == "AAPL"
    assert alert.details["worstMonths"]
    # The same again is a repeat, and the end of it ends the alert.
    pipeline.launch(job="data_quality_job")
    watch.tick(SENSOR)
    assert watch.alerts()[COMPLETE].occurrences == 2
    corrected = pipeline.launch()
    assert corrected.success, failure(corrected)
    watch.tick(SENSOR)
    assert watch.alerts() == {}


def test_damage_before_a_correction_is_over_after_it(watch: Watch) -> None:
    watch.pipeline.launch(job="__ASSET_JOB", assets=["integrity_report"])
    watch.tick(SENSOR)
    assert watch.alerts()[COMPLETE].severity is Severity.LOW
    watch.pipeline.launch()
    watch.tick(SENSOR)
    assert watch.alerts() == {}


def test_a_run_of_materialize_all(watch: Watch) -> None:
    watch.pipeline.launch(job="__ASSET_JOB", assets=["quality_report"])
    watch.tick(SENSOR)
    assert COMPLETE in watch.alerts()


def test_evaluations_without_a_run(watch: Watch) -> None:
    watch.report()
    watch.report("quality_score_at_least_90", "quality_report")
    watch.report("orphaned_below_5", "quality_report", metadata={"value": 12.5})
    watch.tick(SENSOR)
    found = {cause: alert.alert_type for cause, alert in watch.alerts().items()}
    assert found == {
        SOUND: AlertType.ASSET_CHECK_FAILED,
        "low_data_quality": AlertType.LOW_DATA_QUALITY,
        "high_orphaned_records": AlertType.HIGH_ORPHANED_RECORDS,
    }


def test_checks_of_others_are_none_of_our_business(watch: Watch) -> None:
    watch.report("anything", "an_asset_of_somebody_else")
    watch.tick(SENSOR)
    assert watch.alerts(include_resolved=True) == {}


def test_a_check_of_any_name_holds_up_no_other(watch: Watch) -> None:
    # PostgreSQL compresses what repeats; an index has no room for so much that does not.
    name = secrets.token_hex(3000)
    for check in (f"{name}-a", f"{name}-b"):
        # Dagster refuses it too, once the event is stored.
        with pytest.raises(OperationalError, match="index row size"):
            watch.report(check)
    watch.report()
    watch.tick(SENSOR)
    found = watch.alerts()
    assert SOUND in found
    assert {alert.details["check"] for alert in found.values()} == {
        f"{name}-a",
        f"{name}-b",
        "reference_is_sound",
    }


@pytest.mark.parametrize(
    ("evaluations", "occurrences"),
    [
        ([False, True], None),
        ([True, False], 1),
        ([False, True, False, False], 2),
        ([False, False, False], 3),
    ],
)
def test_the_newest_evaluation_of_a_batch_decides(
    watch: Watch, evaluations: list[bool], occurrences: int | None
) -> None:
    for passed in evaluations:
        watch.report(passed=passed)
    watch.tick(SENSOR)
    found = watch.alerts()
    assert (found[SOUND].occurrences if found else None) == occurrences


def test_nothing_is_repeated_by_another_process_or_a_reset_cursor(watch: Watch) -> None:
    watch.report()
    first = watch.tick(SENSOR)
    [(_, _, position)] = [row for row in watch.positions() if row[0] == SENSOR]
    assert first.cursor == str(position)
    with dg.DagsterInstance.from_ref(watch.instance.get_ref()) as restarted:
        watch.instance = restarted
        for cursor in (first.cursor, None, "0", "not a number"):
            watch.tick(SENSOR, cursor=cursor)
        assert watch.alerts()[SOUND].occurrences == 1
        watch.report()
        watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences == 2


def test_another_storage_is_looked_at_anew(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.report()
    watch.tick(SENSOR)
    # Numbers of another storage mean nothing here: it is looked at from its last day on.
    monkeypatch.setattr(events, "source_of", lambda _: "another storage")
    watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences >= 2
    assert {row[1] for row in watch.positions() if row[0] == SENSOR} >= {"another storage"}


def test_the_first_look_goes_back_a_day(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watch.report()
    watch.pipeline.market.execute("TRUNCATE assetclass.watch_position")
    later = time.time() + 25 * 3600
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: later)
        watch.tick(SENSOR)
    assert watch.alerts() == {}
    watch.report()
    watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences == 1


def test_an_event_whose_predecessor_may_still_be_on_its_way_waits(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = watch.positions()
    with monkeypatch.context() as patched:
        patched.setattr(events, "SETTLED_AFTER", 1000.0)
        watch.report()
        watch.tick(SENSOR)
        assert watch.alerts() == {}
    assert watch.positions() == before
    watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences == 1


def test_a_clock_that_is_far_ahead_holds_up_nobody(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(events, "SETTLED_AFTER", 3.0)
        ahead = SimpleNamespace(time=lambda: time.time() - 3600)
        watch.report()
        patched.setattr(events, "time", ahead)
        watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences == 1


def test_many_events_are_looked_at_in_bounded_batches(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asset_check_alerts, "MOST_EVENTS", 4)
    for _ in range(9):
        watch.report()
    watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences == 9


def test_what_broke_a_tick_fails_it_and_loses_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.report()

    def broken(*_: object) -> Any:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(watching, "judge", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            watch.tick(SENSOR)
    watch.tick(SENSOR)
    assert watch.alerts()[SOUND].occurrences == 1


def test_a_database_that_is_away_skips_the_tick_and_says_so(watch: Watch) -> None:
    nowhere = SecretStr("postgresql://nobody:nothing@127.0.0.1:1/nowhere")
    settings = watch.pipeline.settings.model_copy(update={"database_url": nowhere})
    away = Watch(watch.pipeline)
    object.__setattr__(away.pipeline, "defs", build_defs(settings=settings))
    skipped = away.tick(SENSOR).skip_message or ""
    assert "cannot be reached" in skipped
    assert "nothing" not in skipped


def test_a_check_that_nobody_could_compute_is_told_of_by_its_run(
    watch: Watch, pipeline: Pipeline
) -> None:
    [result] = not_computed(
        dg.AssetKey("symbols"), ["reference_is_sound"], "it is gone", pipeline.settings
    )
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("symbols"),
        check_name="reference_is_sound",
        passed=False,
        description=result.description,
    )
    run = pipeline.instance.create_run_for_job(pipeline.defs.resolve_job_def("data_quality_job"))
    pipeline.instance.report_dagster_event(
        DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
            job_name=run.job_name,
            event_specific_data=evaluation,
        ),
        run_id=run.run_id,
    )
    watch.tick(SENSOR)
    assert watch.alerts() == {}
