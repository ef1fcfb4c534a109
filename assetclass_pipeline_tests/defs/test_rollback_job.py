"""`rollback_job` as the UI launches it: what it restores, what it shows, what it refuses."""

from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from assetclass_pipeline.engine.correction import CorrectionRequest, correct, plan
from assetclass_pipeline.model.operation import Kind, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.defs.conftest import Pipeline, checks_of, failure

CORRECTED, QUALITY = dg.AssetKey("corrected_market_data"), dg.AssetKey("quality_report")


@pytest.fixture
def correction(pipeline: Pipeline) -> str:
    """All rows corrected, without Dagster; its correctionId."""
    request = CorrectionRequest(str(uuid4()), CorrectionOptions(), requested_by="ada")
    return correct(pipeline.market.dsn, pipeline.settings, request).correction_id


@pytest.fixture
def correction_run(pipeline: Pipeline) -> str:
    """The same as a run: the months are materialised and checked."""
    result = pipeline.launch()
    assert result.success, failure(result)
    return result.run_id


def undo(pipeline: Pipeline, correction_id: str, **said: Any) -> dg.JobExecutionResult:
    parent = said.pop("parent", None)
    config = {"correction_id": correction_id, "reason": "wrong feed", **said}
    tags = {"user": "grace"}
    return pipeline.launch(
        job="rollback_job", ops={"rollback": {"config": config}}, tags=tags, parent=parent
    )


def observed(result: dg.JobExecutionResult) -> dict[str | None, dict[str, Any]]:
    """Metadata of the observations of `corrected_market_data`, by partition."""
    found = {}
    for event in result.all_events:
        if event.is_asset_observation:
            observation = event.asset_observation_data.asset_observation
            assert observation.asset_key == CORRECTED
            found[observation.partition] = dict(observation.metadata)
    return found


def rows(value: object) -> list[dict[str, Any]]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def materialized(result: dg.JobExecutionResult) -> list[str]:
    events = result.get_asset_materialization_events()
    return [event.asset_key.to_user_string() for event in events if event.asset_key]


def test_every_row_has_its_old_value_and_every_month_hears_of_it(
    pipeline: Pipeline, correction_run: str
) -> None:
    months = pipeline.months()
    result = undo(pipeline, correction_run)
    assert result.success, failure(result)
    assert set(pipeline.market.classes().values()) == {None}

    operation = pipeline.operation(result.run_id)
    assert (operation.kind, operation.status) == (Kind.ROLLBACK, Status.SUCCEEDED)
    assert (operation.rollback_of, operation.requested_by) == (correction_run, "grace")
    assert (operation.reason, operation.records_restored) == ("wrong feed", 41)
    assert pipeline.operation(correction_run).rolled_back_by == result.run_id

    shown = observed(result)
    assert shown.pop(None)["records_restored"].value == 41
    assert {month: shown[month]["records_restored"].value for month in shown} == {
        "2023-01-01": 11,
        "2023-02-01": 10,
        "2023-03-01": 10,
        "2023-04-01": 10,
    }
    ids = {"correction_id": correction_run, "rollback_id": result.run_id, "reason": "wrong feed"}
    for metadata in shown.values():
        assert {name: metadata[name].value for name in ids} == ids
    # An observation leaves the months green, and the checks about the correction as they were.
    assert pipeline.months() == months
    assert materialized(result) == ["quality_report"]


def test_the_quality_report_is_measured_again_with_its_checks(
    pipeline: Pipeline, correction_run: str
) -> None:
    before = pipeline.instance.get_latest_materialization_event(QUALITY)
    result = undo(pipeline, correction_run)
    after = pipeline.instance.get_latest_materialization_event(QUALITY)
    assert before is not None
    assert after is not None
    assert (before.run_id, after.run_id) == (correction_run, result.run_id)
    [materialization] = pipeline.instance.fetch_materializations(QUALITY, limit=1).records
    evaluated = {name: evaluation for (_, name), evaluation in checks_of(result).items()}
    graph = pipeline.defs.resolve_asset_graph()
    names = {key.name for key in graph.asset_check_keys if key.asset_key == QUALITY}
    assert set(evaluated) == names
    assert not evaluated["completeness_at_least_95"].passed
    assert not evaluated["quality_did_not_degrade"].passed
    assert evaluated["integrity_at_least_90"].passed
    for evaluation in evaluated.values():
        assert evaluation.target_materialization_data is not None
        assert evaluation.target_materialization_data.storage_id == materialization.storage_id
    # What the UI shows of a check is the newest evaluation that the storage knows.
    key = dg.AssetCheckKey(QUALITY, "completeness_at_least_95")
    newest = pipeline.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    assert (newest[key].run_id, newest[key].status.value) == (result.run_id, "FAILED")


def test_a_row_that_was_changed_since_is_left_alone_and_listed(
    pipeline: Pipeline, correction: str
) -> None:
    pipeline.market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 22")
    pipeline.market.execute("DELETE FROM market_data WHERE id = 23")
    result = undo(pipeline, correction)
    assert result.success, failure(result)
    classes = pipeline.market.classes()
    assert (classes.pop(22), set(classes.values())) == ("BOND", {None})
    shown = observed(result)[None]
    counted = ("records_restored", "records_conflicting", "records_written")
    assert [shown[name].value for name in counted] == [39, 2, 39]
    changed, deleted = sorted(rows(shown["conflicts"]), key=lambda row: str(row["id"]))
    assert [changed[name] for name in ("id", "symbol", "before", "corrected", "now")] == [
        "22",
        "AAPL",
        "(NULL)",
        "STOCK",
        "BOND",
    ]
    assert (deleted["id"], deleted["now"], deleted["reason"]) == ("23", "(no such row)", "deleted")
    february = observed(result)["2023-02-01"]
    assert february["records_restored"].value == 8
    assert february["records_conflicting"].value == 2
    assert shown["look_at_it"].value == f"assetclass status {result.run_id}"

    blunt = undo(pipeline, correction, take_backup_value=True)
    assert blunt.success, failure(blunt)
    assert set(pipeline.market.classes().values()) == {None}


def test_some_rows_only(pipeline: Pipeline, correction: str) -> None:
    said = {"target_symbols": ["BTC"], "partitions": ["2023-02-01", "2023-03-01"]}
    result = undo(pipeline, correction, **said, row_ids=["21", "22", "31", "41"])
    assert result.success, failure(result)
    missing = {number for number, name in pipeline.market.classes().items() if name is None}
    assert missing == {21, 31}
    assert set(observed(result)) == {None, "2023-02-01", "2023-03-01"}


def test_a_dry_run_shows_what_it_would_do_and_touches_nothing(
    pipeline: Pipeline, correction: str
) -> None:
    pipeline.market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 22")
    before = pipeline.market.versions()
    result = undo(pipeline, correction, dry_run=True)
    assert result.success, failure(result)
    assert pipeline.market.versions() == before
    assert materialized(result) == []
    assert checks_of(result) == {}
    [(partition, shown)] = observed(result).items()
    assert partition is None
    assert (shown["records_to_restore"].value, shown["records_conflicting"].value) == (40, 1)
    assert [row["id"] for row in rows(shown["conflicts"])] == ["22"]
    assert sum(row["records"] for row in rows(shown["changes"])) == 40
    assert shown["completeness_before"].value == 100
    assert shown["completeness_expected"].value == pytest.approx(100 / 41, abs=0.01)
    assert pipeline.operation(correction).rolled_back_by is None


def test_without_validation_nothing_is_measured(pipeline: Pipeline, correction: str) -> None:
    result = undo(pipeline, correction, validate_after_rollback=False)
    assert result.success, failure(result)
    assert materialized(result) == []
    assert len(observed(result)) == 5
    assert set(pipeline.market.classes().values()) == {None}


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"partitions": ["2023-02-02"]}, "partitions"),
        ({"partitions": ["2043-02-01"]}, "2043-02-01"),
        ({"timeout": "48:00:00"}, "timeout"),
        ({"pace": "reckless"}, "pace"),
        ({"retry": {"tries": 99}}, "retry.tries"),
        ({"reason": " "}, "reason"),
        ({"correction_id": "yesterday"}, "'yesterday'"),
        ({"correction_id": str(uuid4())}, "No operation has the correctionId"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    pipeline: Pipeline, correction: str, said: dict[str, Any], names: str
) -> None:
    result = undo(pipeline, **{"correction_id": correction, **said})
    assert not result.success
    assert names in failure(result)
    assert [operation.correction_id for operation in pipeline.operations()] == [correction]


def test_a_rollback_is_not_rolled_back_and_none_is_done_twice(
    pipeline: Pipeline, correction: str
) -> None:
    first = undo(pipeline, correction)
    assert first.success, failure(first)
    again = undo(pipeline, correction)
    assert not again.success
    assert f"was rolled back by {first.run_id}" in failure(again)
    # Executed once more, a run that ended well is a new operation, and that one is refused.
    repeated = undo(pipeline, correction, parent=pipeline.run(first))
    assert f"was rolled back by {first.run_id}" in failure(repeated)
    undone = undo(pipeline, first.run_id)
    assert f"roll back {correction}" in failure(undone)


def test_it_is_refused_while_an_operation_is_active(pipeline: Pipeline, correction: str) -> None:
    active = str(uuid4())
    request = CorrectionRequest(active, CorrectionOptions(), requested_by="ada")
    plan(pipeline.market.dsn, pipeline.settings, request, park=False)
    pipeline.market.execute(
        "UPDATE assetclass.operation_heartbeat SET holder = 'elsewhere:1', "
        "beat_at = now() + interval '1 hour'"
    )
    result = undo(pipeline, correction)
    assert not result.success
    assert f"Operation {active} is active" in failure(result)
    assert None not in pipeline.market.classes().values()


def test_re_executing_a_failed_run_goes_on_with_its_operation(
    pipeline: Pipeline, correction: str
) -> None:
    market = pipeline.market
    market.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.symbol = 'BTC' THEN RAISE 'not now' USING ERRCODE = '23514'; END IF; "
        "RETURN NEW; END $$"
    )
    market.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION refuse()",
        market.market_identifier,
    )
    failed = undo(pipeline, correction, retry={"tries": 1})
    assert not failed.success
    assert "not now" in failure(failed)
    assert "UPDATE" not in failure(failed)
    assert pipeline.operation(failed.run_id).status is Status.FAILED
    market.execute("DROP TRIGGER refuse ON {}", market.market_identifier)
    again = undo(pipeline, correction, parent=pipeline.run(failed))
    assert again.success, failure(again)
    assert set(market.classes().values()) == {None}
    operation = pipeline.operation(failed.run_id)
    assert (operation.status, operation.records_restored) == (Status.SUCCEEDED, 41)
    assert operation.run_id == again.run_id
    assert len(pipeline.operations()) == 2
