"""Limits with two levels, and what a measurement says against them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assetclass_pipeline.errors import InvalidSettingsError
from assetclass_pipeline.model.excess import excess
from assetclass_pipeline.model.quality import (
    Category,
    Effort,
    IntegrityReport,
    Level,
    PartitionCount,
    SecondsRange,
    SymbolCount,
    Thresholds,
    judge,
    percent,
)
from assetclass_pipeline.settings import load_settings

WARN, ERROR = Level.WARN, Level.ERROR


@pytest.mark.parametrize(
    ("name", "second", "kept", "violations"),
    [
        # Of each setting: a second limit, values that keep both, and values with what they violate.
        ("completeness", {}, [95, 100], {94.99: ERROR}),
        ("completeness", {"completeness_warn": 97}, [97, 100], {96.99: WARN, 94.99: ERROR}),
        ("integrity", {"integrity_warn": 95}, [95], {94.99: WARN, 90: WARN, 89.99: ERROR}),
        ("orphaned", {}, [0, 4.99], {5: ERROR}),
        ("orphaned", {"orphaned_warn": 2}, [1.99], {2: WARN, 4.99: WARN, 5: ERROR}),
        ("quality_score", {}, [90], {89.99: WARN, 0: WARN}),
        ("quality_score", {"quality_score_error": 70}, [90], {70: WARN, 69.99: ERROR}),
        ("correctable", {"correctable_error": 50}, [10], {10.01: WARN, 50: WARN, 50.01: ERROR}),
        ("degradation", {"degradation_error": 5}, [1, -3], {1.01: WARN, 5: WARN, 5.01: ERROR}),
    ],
)
def test_the_worst_violated_level_counts(
    name: str, second: dict[str, float], kept: list[float], violations: dict[float, Level]
) -> None:
    limits = Thresholds(**second).limits(name)
    assert [limits.violated(value) for value in kept] == [None] * len(kept)
    assert {value: limits.violated(value) for value in violations} == violations


def test_passed_speaks_of_the_guides_limit_only() -> None:
    early = Thresholds(completeness_warn=97).limits("completeness").judge(96)
    assert (early.passed, early.level, early.violated_limit) == (True, WARN, 97)
    hard = Thresholds(quality_score_error=50).limits("quality_score").judge(40)
    assert (hard.passed, hard.level, hard.violated_limit, hard.limit) == (False, ERROR, 50, 90)
    fine = Thresholds().limits("orphaned").judge(1)
    assert (fine.passed, fine.level, fine.violated_limit) == (True, None, 5)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("completeness_warn", 94, "completeness_warn 94 contradicts completeness 95"),
        ("completeness_warn", 95, "must be above"),
        ("integrity_warn", 10, "integrity_warn 10 contradicts integrity 90"),
        ("orphaned_warn", 5, "must be below"),
        ("orphaned_warn", 7, "orphaned_warn 7 contradicts orphaned 5"),
        ("quality_score_error", 90, "quality_score_error 90 contradicts quality_score 90"),
        ("correctable_error", 9, "correctable_error 9 contradicts correctable 10"),
        ("degradation_error", 0.5, "degradation_error 0.5 contradicts degradation 1"),
        ("completeness_warn", 101, "COMPLETENESS_WARN"),
        # The guide's limit is the error itself; a name that is no setting is not passed over.
        ("completeness_error", 80, "COMPLETENESS_ERROR"),
    ],
)
def test_contradictory_levels_are_refused(setting: str, value: float, says: str) -> None:
    with pytest.raises(InvalidSettingsError) as refused:
        load_settings(thresholds={setting: value})
    assert "ASSETCLASS_THRESHOLDS" in str(refused.value)
    assert says in str(refused.value)


def report_of(limits: Thresholds, **counts: int) -> IntegrityReport:
    """A report of so many rows, all damage in two symbols and two months."""
    said = {"orphaned": 0, "missing": 0, "mismatched": 0, **counts}
    total, orphaned = said["total"], said["orphaned"]
    mappable = total - orphaned
    correctable, mismatched = said["missing"], said["mismatched"]
    scores: dict[str, Any] = {
        "completeness": percent(total - correctable, total, of_nothing=100),
        "integrity": percent(mappable, total, of_nothing=100),
        "orphaned_percent": percent(orphaned, total, of_nothing=0),
        "quality_score": percent(mappable - correctable - mismatched, mappable, of_nothing=100),
    }
    share = percent(correctable, total, of_nothing=0)
    rest = {"missing": correctable, "mismatched": mismatched}
    return IntegrityReport(
        generated_at=datetime(2026, 1, 1, tzinfo=UTC),
        analysis_duration_seconds=1,
        total_records=total,
        null_asset_class=correctable,
        empty_asset_class=0,
        valid_asset_class=total - correctable,
        mismatched=mismatched,
        orphaned=orphaned,
        unclassified=0,
        ambiguous=0,
        mappable=mappable,
        correctable=correctable,
        symbols_referenced=2,
        symbols_without_market_data=0,
        by_asset_class=[],
        by_symbol=[
            SymbolCount(symbol="A", records=mappable, category=Category.MAPPABLE, **rest),
            SymbolCount(
                symbol="X", records=orphaned, missing=0, mismatched=0, category=Category.ORPHANED
            ),
        ],
        by_partition=[
            PartitionCount(
                partition="2026-01-01",
                records=mappable,
                orphaned=0,
                correctable=correctable,
                **rest,
            ),
            PartitionCount(
                partition="2026-02-01",
                records=orphaned,
                missing=0,
                mismatched=0,
                correctable=0,
                orphaned=orphaned,
            ),
        ],
        issues=[],
        recommendations=[],
        effort=Effort(records=0, batches=0, estimated_seconds=SecondsRange(low=0, high=0)),
        thresholds=judge(limits, correctable_percent=share, **scores),
        **scores,
    )


def test_who_holds_the_damage() -> None:
    report = report_of(Thresholds(), total=200, orphaned=30, missing=60, mismatched=10)
    found = {name: excess(report, name, most=5) for name in report.thresholds}
    assert {name: (each.damaged, each.over) for name, each in found.items()} == {
        "completeness": (60, 50),
        "integrity": (30, 10),
        # Fewer than 5 % of 200 are 9 at most.
        "orphanedPercent": (30, 21),
        # A tenth of the 170 mappable ones may differ.
        "qualityScore": (70, 53),
        "correctablePercent": (60, 40),
    }
    assert found["completeness"].worst_symbols == [("A", 60, 170)]
    assert found["qualityScore"].worst_months == [("2026-01-01", 70, 170)]
    for name in ("integrity", "orphanedPercent"):
        assert found[name].worst_symbols == [("X", 30, 30)]
        assert found[name].worst_months == [("2026-02-01", 30, 30)]


@given(
    total=st.integers(1, 2000),
    orphaned=st.integers(0, 2000),
    limit=st.decimals(0, 100, places=2).map(float),
)
def test_mending_so_many_rows_meets_the_limit_and_one_less_does_not(
    total: int, orphaned: int, limit: float
) -> None:
    orphaned = min(orphaned, total)
    limits = Thresholds(integrity=limit)
    over = excess(report_of(limits, total=total, orphaned=orphaned), "integrity", most=1).over
    assert report_of(limits, total=total, orphaned=orphaned - over).thresholds["integrity"].passed
    if over:
        left = report_of(limits, total=total, orphaned=orphaned - over + 1)
        assert not left.thresholds["integrity"].passed
