"""Each asset check passes on good data and fails on bad data."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from psycopg import sql
from pydantic import SecretStr

from assetclass_pipeline.model.operation import Status
from assetclass_pipeline.model.quality import Thresholds
from assetclass_pipeline_tests.defs.conftest import Pipeline, checks_of, failure, range_tags
from assetclass_pipeline_tests.market import Bar

BACKUP, CORRECTED, QUALITY = "market_data_backup", "corrected_market_data", "quality_report"
ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def bars(first: int, count: int, symbol: str, asset_class: str | None) -> list[Bar]:
    return [Bar(first + n, symbol, "2023-03-03 00:00+00", asset_class) for n in range(count)]


def outcome(
    pipeline: Pipeline, asset: str, name: str, *, job: str = "data_quality_job"
) -> tuple[bool, dg.AssetCheckSeverity]:
    """Passed, and how severe; the run itself succeeds either way."""
    assets = ["integrity_report"] if asset == "integrity_report" else None
    result = pipeline.launch(job="__ASSET_JOB" if assets else job, assets=assets)
    assert result.success
    evaluation = checks_of(result)[(asset, name)]
    return evaluation.passed, evaluation.severity


@pytest.fixture
def pipeline(pipeline: Pipeline) -> Pipeline:
    """A market of 400 sound rows."""
    pipeline.market.execute("TRUNCATE {}", pipeline.market.market_identifier)
    pipeline.market.add(bars(1, 400, "AAPL", "STOCK"))
    return pipeline


@pytest.mark.parametrize(
    ("name", "severity", "damage"),
    [
        # 21 of 421 rows: 95.01 % are complete, one row more and they are not.
        ("completeness_at_least_95", ERROR, [*bars(1000, 22, "NONE", None)]),
        ("integrity_at_least_90", ERROR, [*bars(1000, 45, "TWICE", "STOCK")]),
        ("orphaned_below_5", ERROR, [*bars(1000, 22, "NONE", "STOCK")]),
        ("quality_score_at_least_90", WARN, [*bars(1000, 45, "AAPL", "BOND")]),
        ("correctable_at_most_10_percent", WARN, [*bars(1000, 45, "AAPL", None)]),
    ],
)
def test_thresholds_of_the_quality_report(
    pipeline: Pipeline, name: str, severity: dg.AssetCheckSeverity, damage: Sequence[Bar]
) -> None:
    pipeline.market.list_symbols(("TWICE", "STOCK"), ("TWICE", "BOND"))
    assert outcome(pipeline, QUALITY, name) == (True, severity)
    pipeline.market.add(damage[:-1])
    assert outcome(pipeline, QUALITY, name) == (True, severity)
    pipeline.market.add(damage[-1:])
    assert outcome(pipeline, QUALITY, name) == (False, severity)


def test_quality_did_not_degrade(pipeline: Pipeline) -> None:
    name = "quality_did_not_degrade"
    assert outcome(pipeline, QUALITY, name) == (True, WARN)
    pipeline.market.add(bars(1000, 4, "AAPL", "BOND"))
    # 0.99 points; and an integrity report in between is not what it is compared with.
    assert outcome(pipeline, QUALITY, name) == (True, WARN)
    pipeline.market.add(bars(2000, 5, "AAPL", "BOND"))
    outcome(pipeline, "integrity_report", "integrity_at_least_90")
    assert outcome(pipeline, QUALITY, name) == (False, WARN)
    assert outcome(pipeline, QUALITY, name) == (True, WARN)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("completeness_at_least_95", bars(1000, 22, "NONE", None)),
        ("integrity_at_least_90", bars(1000, 45, "NONE", "STOCK")),
        ("orphaned_below_5", bars(1000, 22, "NONE", "STOCK")),
    ],
)
def test_thresholds_of_the_integrity_report_only_warn(
    pipeline: Pipeline, name: str, damage: Sequence[Bar]
) -> None:
    assert outcome(pipeline, "integrity_report", name) == (True, WARN)
    pipeline.market.add(damage)
    assert outcome(pipeline, "integrity_report", name) == (False, WARN)


@pytest.mark.parametrize(
    ("ticker", "listed", "severity"),
    [(None, True, WARN), ("", True, WARN), ("ONLY", False, ERROR)],
)
def test_reference_is_sound(
    pipeline: Pipeline, ticker: str | None, listed: bool, severity: dg.AssetCheckSeverity
) -> None:
    name = "reference_is_sound"
    assert outcome(pipeline, "symbols", name)[0] is True
    if not listed:
        pipeline.market.execute("TRUNCATE {}", pipeline.market.symbols_identifier)
    pipeline.market.list_symbols((ticker, "STOCK" if listed else None))
    assert outcome(pipeline, "symbols", name) == (False, severity)


def test_an_incomplete_backup_stops_the_correction(pipeline: Pipeline) -> None:
    market = pipeline.market
    market.add(bars(1000, 5, "AAPL", None))
    tags = range_tags("2023-03-01", "2023-03-01")
    parked = pipeline.launch(job="__ASSET_JOB", assets=[BACKUP], tags=tags)
    assert checks_of(parked)[(BACKUP, "backup_is_complete")].passed
    market.execute("DELETE FROM {} WHERE seq = 3", sql.Identifier(market.backup_tables()[0]))
    before = market.versions()
    stopped = pipeline.launch(
        job="__ASSET_JOB", assets=[BACKUP, CORRECTED], tags=tags, parent=pipeline.run(parked)
    )
    assert not stopped.success
    evaluation = checks_of(stopped)[(BACKUP, "backup_is_complete")]
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)
    assert market.versions() == before
    assert pipeline.operation(parked.run_id).status is Status.PLANNED


def test_a_backup_of_long_ago_may_be_gone_by_the_cleanup_and_by_nobody_else(
    pipeline: Pipeline,
) -> None:
    """Asked for alone, the check looks at the newest correction, however old that is."""

    def checked() -> tuple[bool, str, str]:
        key = dg.AssetCheckKey(dg.AssetKey(BACKUP), "backup_is_complete")
        result = pipeline.launch(job="__ASSET_JOB", checks=[key])
        found = checks_of(result)[(BACKUP, key.name)]
        assert result.success is found.passed
        to_do = found.metadata.get("what_to_do")
        return found.passed, found.description or "", str(to_do.value) if to_do else ""

    market = pipeline.market
    market.add(bars(1000, 5, "AAPL", None))
    result = pipeline.launch()
    assert result.success, failure(result)
    assert checked() == (True, "5 rows in the backup table, 5 planned", "")

    backup = sql.Identifier(market.backup_tables()[0])
    market.execute("DELETE FROM {} WHERE seq = 3", backup)
    passed, said, to_do = checked()
    assert (passed, said) == (False, "4 rows in the backup table, 5 planned")
    assert "after the correction" in to_do

    market.execute("DROP TABLE {}", backup)
    passed, said, to_do = checked()
    assert (passed, "dropped by hand" in said) == (False, True), said
    assert "who dropped it" in to_do

    market.add(bars(2000, 5, "AAPL", None))
    assert pipeline.launch().success
    market.execute("UPDATE assetclass.backup SET expires_at = now() - interval '1 s'")
    assert pipeline.launch(job="backup_cleanup_job").success
    assert market.backup_tables() == []
    passed, said, to_do = checked()
    assert (passed, to_do) == (True, "")
    assert "expired" in said
    assert "its rows are archived in" in said


def test_no_row_lost_or_invented(pipeline: Pipeline) -> None:
    """It passes after a correction; asked for alone it looks at the newest correction again."""
    key = dg.AssetCheckKey(dg.AssetKey(CORRECTED), "no_row_lost_or_invented")
    pipeline.market.add(bars(1000, 5, "AAPL", None))
    result = pipeline.launch(options={"batch_size": 2})
    assert result.success
    assert checks_of(result)[(CORRECTED, key.name)].passed
    again = pipeline.launch(job="__ASSET_JOB", checks=[key])
    assert again.success
    assert checks_of(again)[(CORRECTED, key.name)].passed
    pipeline.market.execute("DELETE FROM assetclass.operation_batch WHERE first_seq = 1")
    damaged = pipeline.launch(job="__ASSET_JOB", checks=[key])
    evaluation = checks_of(damaged)[(CORRECTED, key.name)]
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)


LEVELS = Thresholds(completeness_warn=99, orphaned_warn=1, quality_score_error=80)


def with_settings(pipeline: Pipeline, **update: Any) -> Pipeline:
    return replace(pipeline, settings=pipeline.settings.model_copy(update=update))


@pytest.mark.parametrize(
    ("name", "damage", "severity"),
    [
        ("completeness_at_least_95", bars(1000, 8, "NONE", None), WARN),
        ("completeness_at_least_95", bars(1000, 30, "NONE", None), ERROR),
        ("orphaned_below_5", bars(1000, 8, "NONE", "STOCK"), WARN),
        ("orphaned_below_5", bars(1000, 30, "NONE", "STOCK"), ERROR),
        ("quality_score_at_least_90", bars(1000, 60, "AAPL", "BOND"), WARN),
        ("quality_score_at_least_90", bars(1000, 120, "AAPL", "BOND"), ERROR),
    ],
)
def test_a_check_is_as_severe_as_the_worst_level_that_is_violated(
    pipeline: Pipeline, name: str, damage: Sequence[Bar], severity: dg.AssetCheckSeverity
) -> None:
    pipeline = with_settings(pipeline, thresholds=LEVELS)
    assert outcome(pipeline, QUALITY, name)[0] is True
    pipeline.market.add(damage)
    assert outcome(pipeline, QUALITY, name) == (False, severity)


def test_checks_of_the_integrity_report_never_do_more_than_warn(pipeline: Pipeline) -> None:
    pipeline = with_settings(pipeline, thresholds=LEVELS)
    pipeline.market.add(bars(1000, 30, "NONE", "STOCK"))
    assert outcome(pipeline, "integrity_report", "orphaned_below_5") == (False, WARN)


def metadata_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    result = pipeline.launch(job="data_quality_job")
    return dict(checks_of(result)[(QUALITY, name)].metadata)


def rows(value: dg.TableMetadataValue) -> list[dict[str, Any]]:
    return [dict(record.data) for record in value.records]


def test_a_failed_check_explains_itself(pipeline: Pipeline) -> None:
    pipeline.market.add(bars(1000, 40, "NONE", "STOCK"))
    name = "orphaned_below_5"
    found = metadata_of(pipeline, name)
    said = ("value", "limit", "level_violated", "damaged_rows", "rows_over_the_limit")
    # Of 440 rows 21 are fewer than 5 %.
    assert [found[key].value for key in said] == [9.09, 5, "error", 40, 19]
    assert rows(found["worst_symbols"]) == [{"symbol": "NONE", "damaged": 40, "records": 40}]
    assert rows(found["worst_months"]) == [{"month": "2023-03-01", "damaged": 40, "records": 440}]
    assert "Add the worst symbols to symbols" in found["what_to_do"].value
    assert isinstance(found["runbook"], dg.PathMetadataValue)
    assert found["runbook"].value == "docs/runbooks/high-orphaned-records.md"
    alerts = pipeline.settings.alerts.model_copy(
        update={"runbooks_url": "https://runbooks.example/etl/"}
    )
    linked = metadata_of(with_settings(pipeline, alerts=alerts), name)["runbook"]
    assert isinstance(linked, dg.UrlMetadataValue)
    assert linked.value == "https://runbooks.example/etl/high-orphaned-records.md"
    assert set(metadata_of(pipeline, "quality_score_at_least_90")) == {"value", "limit"}


def test_a_lost_score_states_its_numbers(pipeline: Pipeline) -> None:
    name = "quality_did_not_degrade"
    assert outcome(pipeline, QUALITY, name) == (True, WARN)
    pipeline.market.add(bars(1000, 100, "AAPL", "BOND"))
    found = metadata_of(pipeline, name)
    said = ("points_lost", "limit", "quality_score", "quality_score_before", "rows", "rows_before")
    assert [found[key].value for key in said] == [20, 1, 80, 100, 500, 400]
    assert found["runbook"].value == "docs/runbooks/data-quality-degraded.md"


QUALITY_CHECKS = {
    "completeness_at_least_95",
    "integrity_at_least_90",
    "orphaned_below_5",
    "quality_score_at_least_90",
    "correctable_at_most_10_percent",
    "quality_did_not_degrade",
}


def not_computed(result: dg.JobExecutionResult) -> dict[str, set[str]]:
    """Checks by asset that say so; each is an error with the reason and the next step."""
    found: dict[str, set[str]] = {}
    for (asset, name), evaluation in checks_of(result).items():
        if not (evaluation.description or "").startswith("could not be computed: "):
            continue
        assert (evaluation.passed, evaluation.severity) == (False, ERROR)
        assert evaluation.metadata["runbook"].value == "docs/runbooks/asset-check-failed.md"
        assert str(evaluation.metadata["reason"].value) in (evaluation.description or "")
        found.setdefault(asset, set()).add(name)
    return found


@pytest.fixture
def symbols_vanish(pipeline: Pipeline) -> Iterator[Pipeline]:
    """The reference table is renamed as soon as somebody measures the quality: in mid-run."""
    market = pipeline.market
    market.execute(
        "CREATE OR REPLACE FUNCTION vanish() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('application_name') = 'assetclass: quality_report'"
        " THEN ALTER TABLE IF EXISTS public.symbols RENAME TO symbols_gone; END IF; END $$"
    )
    market.execute("CREATE EVENT TRIGGER vanish ON login EXECUTE FUNCTION vanish()")
    yield pipeline
    symbols_are_back(pipeline)


def symbols_are_back(pipeline: Pipeline) -> None:
    pipeline.market.execute("DROP EVENT TRIGGER IF EXISTS vanish")
    pipeline.market.execute("ALTER TABLE IF EXISTS symbols_gone RENAME TO symbols")


@pytest.mark.parametrize(
    "tags", [{}, range_tags("2023-03-01", "2023-04-01")], ids=["all rows", "a range"]
)
def test_a_check_that_cannot_be_computed_fails_as_an_error(
    symbols_vanish: Pipeline, tags: dict[str, str]
) -> None:
    pipeline = symbols_vanish
    pipeline.market.add(bars(1000, 5, "AAPL", None))
    result = pipeline.launch(tags=tags)
    assert not result.success
    assert not_computed(result) == {QUALITY: QUALITY_CHECKS}
    assert checks_of(result)[(CORRECTED, "no_row_lost_or_invented")].passed
    assert "symbols" in failure(result)
    # The UI shows the newest evaluation, not one that passed before.
    key = dg.AssetCheckKey(dg.AssetKey(QUALITY), "integrity_at_least_90")
    storage = pipeline.instance.event_log_storage
    newest = storage.get_latest_asset_check_execution_by_key([key])[key]
    assert (newest.run_id, newest.status.value) == (result.run_id, "FAILED")
    symbols_are_back(pipeline)
    again = pipeline.launch(parent=pipeline.run(result))
    assert checks_of(again)[(QUALITY, key.name)].passed


def test_nor_is_it_a_pass_after_a_rollback(pipeline: Pipeline, request: Any) -> None:
    pipeline.market.add(bars(1000, 5, "AAPL", None))
    correction = pipeline.launch()
    assert correction.success
    request.getfixturevalue("symbols_vanish")
    config = {"correction_id": correction.run_id, "reason": "a test"}
    result = pipeline.launch(job="rollback_job", ops={"rollback": {"config": config}})
    assert not result.success
    assert not_computed(result) == {QUALITY: QUALITY_CHECKS}
    assert pipeline.operation(result.run_id).status is Status.SUCCEEDED


@pytest.mark.parametrize("reason", ["time", "away"])
def test_a_scan_that_takes_too_long_or_a_server_that_is_away_fails_every_check(
    pipeline: Pipeline, reason: str
) -> None:
    if reason == "away":
        nowhere = SecretStr("postgresql://nobody:nothing@127.0.0.1:1/nowhere")
        pipeline = with_settings(pipeline, database_url=nowhere)
    else:
        pipeline.market.execute(
            "INSERT INTO market_data (id, symbol) SELECT n, 'S' || n"
            " FROM generate_series(10000, 40000) n"
        )
        session = pipeline.settings.session.model_copy(update={"scan_timeout": 0.001})
        pipeline = with_settings(pipeline, session=session)
    result = pipeline.launch(job="data_quality_job")
    assert not result.success
    found = not_computed(result)
    assert found[QUALITY] == QUALITY_CHECKS
    if reason == "away":
        assert found["symbols"] == {"reference_is_sound"}
    says = {"time": "statement timeout", "away": "cannot be reached"}
    assert says[reason] in failure(result)
    report = pipeline.launch(job="__ASSET_JOB", assets=["integrity_report"])
    names = {"completeness_at_least_95", "integrity_at_least_90", "orphaned_below_5"}
    assert not_computed(report) == {"integrity_report": names}
