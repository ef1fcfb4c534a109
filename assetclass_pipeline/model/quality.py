"""What damage is, in numbers: categories, scores, thresholds and the integrity report.

Belongs here: definitions of design.md section 2 as pure values. Does not: how they are counted.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel


class Category(StrEnum):
    """What `symbols` says about a symbol: exactly one holds for each."""

    MAPPABLE = "mappable"
    ORPHANED = "orphaned"
    UNCLASSIFIED = "unclassified"
    AMBIGUOUS = "ambiguous"


class Thresholds(BaseModel):
    """Limits of the guide, percent 0..100 (durations in seconds)."""

    model_config = ConfigDict(frozen=True)

    completeness: float = Field(95, ge=0, le=100, description="at least")
    integrity: float = Field(90, ge=0, le=100, description="at least")
    orphaned: float = Field(5, ge=0, le=100, description="below")
    quality_score: float = Field(90, ge=0, le=100, description="at least")
    correctable: float = Field(10, ge=0, le=100, description="at most, percent of all rows")
    degradation: float = Field(
        1, ge=0, le=100, description="at most so many points of quality score lost between reports"
    )
    error_rate: float = Field(5, ge=0, le=100, description="at most, percent of attempted rows")
    success_rate: float = Field(95, ge=0, le=100, description="at least, percent of what ended")
    duration: float = Field(7200, gt=0, description="seconds at most")


class ThresholdResult(WireModel):
    """One measured percent against its limit."""

    value: Percent
    limit: Percent
    comparison: str = Field(description=">=, < or <=")
    passed: bool


class ClassCount(WireModel):
    """Rows that carry one value of `asset_class`; None is NULL, "" is the empty string."""

    asset_class: str | None
    records: int


class SymbolCount(WireModel):
    """Rows of one symbol and how many of them are damaged."""

    symbol: str | None
    records: int
    missing: int
    mismatched: int
    category: Category


class PartitionCount(WireModel):
    """Rows of one month (UTC); the edge months hold everything before and after them."""

    partition: str
    records: int
    missing: int
    mismatched: int
    orphaned: int
    correctable: int


class Issue(WireModel):
    """Something wrong with the data, and how many rows it touches."""

    code: str
    severity: str = Field(description="high, medium or low")
    message: str
    records: int


class SecondsRange(WireModel):
    """An estimated duration."""

    low: Seconds
    high: Seconds


class Effort(WireModel):
    """What a correction with default options would take."""

    records: int
    batches: int
    estimated_seconds: SecondsRange


class IntegrityReport(WireModel):
    """The damage in `market_data`, counted in one scan (one snapshot)."""

    generated_at: Moment
    analysis_duration_seconds: Seconds
    total_records: int
    null_asset_class: int
    empty_asset_class: int
    valid_asset_class: int
    mismatched: int
    orphaned: int
    unclassified: int
    ambiguous: int
    mappable: int
    correctable: int = Field(description="missing and mappable rows")
    completeness: Percent
    integrity: Percent
    orphaned_percent: Percent
    quality_score: Percent
    symbols_referenced: int
    symbols_without_market_data: int
    by_asset_class: list[ClassCount]
    by_symbol: list[SymbolCount] = Field(description="the worst ones")
    by_partition: list[PartitionCount]
    issues: list[Issue]
    recommendations: list[str]
    effort: Effort
    thresholds: dict[str, ThresholdResult]

    @property
    def missing(self) -> int:
        """Rows whose `asset_class` is NULL or empty."""
        return self.null_asset_class + self.empty_asset_class

    @property
    def failed_thresholds(self) -> list[str]:
        """Names of the thresholds that are not met."""
        return [name for name, result in self.thresholds.items() if not result.passed]


def percent(part: int, whole: int, *, of_nothing: float) -> float:
    """100 x part / whole; `of_nothing` where there is nothing to divide by."""
    return 100 * part / whole if whole else of_nothing


def judge(
    limits: Thresholds,
    *,
    completeness: float,
    integrity: float,
    orphaned_percent: float,
    quality_score: float,
    correctable_percent: float,
) -> dict[str, ThresholdResult]:
    """Each percent against its limit, on exact values; only their JSON is rounded."""

    def at_least(value: float, limit: float) -> ThresholdResult:
        return ThresholdResult(value=value, limit=limit, comparison=">=", passed=value >= limit)

    return {
        "completeness": at_least(completeness, limits.completeness),
        "integrity": at_least(integrity, limits.integrity),
        "orphanedPercent": ThresholdResult(
            value=orphaned_percent,
            limit=limits.orphaned,
            comparison="<",
            passed=orphaned_percent < limits.orphaned,
        ),
        "qualityScore": at_least(quality_score, limits.quality_score),
        "correctablePercent": ThresholdResult(
            value=correctable_percent,
            limit=limits.correctable,
            comparison="<=",
            passed=correctable_percent <= limits.correctable,
        ),
    }
