"""What the UI shows of an operation and of a dry run: the metadata of real runs."""

from typing import Any

import dagster as dg

from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.defs.conftest import Pipeline, failure

BACKUP, CORRECTED = "market_data_backup", "corrected_market_data"


def metadata(result: dg.JobExecutionResult, asset: str) -> dict[str, Any]:
    """Of the newest month, or of the observation of a dry run."""
    found: dict[str, Any] = {}
    for event in result.all_events:
        if event.is_step_materialization and event.asset_key == dg.AssetKey(asset):
            found = dict(event.materialization.metadata)
        elif event.is_asset_observation and event.asset_key == dg.AssetKey(asset):
            found = dict(event.asset_observation_data.asset_observation.metadata)
    return found


def rows(value: object) -> list[dict[str, Any]]:
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def is_number(value: object) -> bool:
    return isinstance(value, (dg.IntMetadataValue, dg.FloatMetadataValue))


def test_a_correction_shows_its_estimate_and_what_the_preflight_found(pipeline: Pipeline) -> None:
    pipeline.market.execute(
        "CREATE INDEX by_class ON {} (asset_class)", pipeline.market.market_identifier
    )
    result = pipeline.launch(job="__ASSET_JOB", assets=[CORRECTED])
    assert result.success
    shown = metadata(result, CORRECTED)
    operation = pipeline.operation(result.run_id)
    estimate = operation.estimated_seconds
    assert estimate is not None
    assert is_number(shown["estimate_error_percent"])
    for name, value in (("low", estimate.low), ("high", estimate.high)):
        assert shown[f"estimated_seconds_{name}"].value == round(value, 1)
    assert is_number(shown["disk_needed_bytes"])
    found = {row["finding"]: row for row in rows(shown["preflight"])}
    assert set(next(iter(found.values()))) == {"severity", "finding", "message"}
    assert any("by_class" in row["message"] for row in found.values())
    assert {row["severity"] for row in found.values()} <= {"warn", "info"}
    # Nothing waited and nothing was refused, so there is nothing of the kind to be read.
    assert not {"waits", "waited_seconds", "refused"} & set(shown)


def test_refused_rows_stand_in_a_table(pipeline: Pipeline) -> None:
    pipeline.market.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.id = 12 THEN RAISE 'not this one' USING ERRCODE = '23514'; END IF; "
        "RETURN NEW; END $$"
    )
    pipeline.market.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION refuse()",
        pipeline.market.market_identifier,
    )
    # Of so few rows one is 2 %.
    result = pipeline.launch()
    assert result.success, failure(result)
    shown = metadata(result, CORRECTED)
    assert shown["records_refused_in_all"].value == 1
    [row] = rows(shown["refused"])
    assert (row["id"], row["symbol"], row["corrected_asset_class"]) == ("12", "AAPL", "STOCK")
    assert "not this one" in row["error_message"]
    assert pipeline.operation(result.run_id).status is Status.SUCCEEDED


def test_waits_are_summed_and_listed(pipeline: Pipeline) -> None:
    parked = pipeline.launch(job="__ASSET_JOB", assets=[BACKUP])
    assert parked.success
    pipeline.market.execute(
        "INSERT INTO assetclass.operation_wait (correction_id, signal, seconds) "
        "VALUES (%s, 'replication_lag', 61.23), (%s, 'pause', 2)",
        values=(parked.run_id, parked.run_id),
    )
    resumed = pipeline.launch(job="__ASSET_JOB", assets=[CORRECTED], parent=pipeline.run(parked))
    assert resumed.success, failure(resumed)
    shown = metadata(resumed, CORRECTED)
    assert shown["waited_seconds"].value >= 63.2
    waits = {row["signal"]: row["seconds"] for row in rows(shown["waits"])}
    assert waits["replication_lag"] >= 61.2


def test_a_dry_run_shows_what_a_correction_would_meet(pipeline: Pipeline) -> None:
    pipeline.market.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    try:
        result = pipeline.launch(options={"dry_run": True})
    finally:
        pipeline.market.execute("DROP PUBLICATION everything")
    assert result.success, failure(result)
    for asset in (BACKUP, CORRECTED):
        shown = metadata(result, asset)
        assert rows(shown["preflight"])[0]["severity"] == "refuse"
        assert (shown["records"].value, shown["workers"].value) == (41, 2)
        assert is_number(shown["rehearsed_records"])
        assert is_number(shown["estimated_seconds_high"])
