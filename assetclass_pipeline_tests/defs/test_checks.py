"""Each asset check passes on good data and fails on bad data."""

from collections.abc import Sequence

import dagster as dg
import pytest

from assetclass_pipeline.model.operation import Status
from assetclass_pipeline_tests.defs.conftest import Pipeline, checks_of, range_tags
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
    market.execute(f"DELETE FROM {market.backup_tables()[0]} WHERE seq = 3")  # noqa: S608
    before = market.versions()
    stopped = pipeline.launch(
        job="__ASSET_JOB", assets=[BACKUP, CORRECTED], tags=tags, parent=pipeline.run(parked)
    )
    assert not stopped.success
    evaluation = checks_of(stopped)[(BACKUP, "backup_is_complete")]
    assert (evaluation.passed, evaluation.severity) == (False, ERROR)
    assert market.versions() == before
    assert pipeline.operation(parked.run_id).status is Status.PLANNED


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
