"""What damage is, in numbers: categories, scores, thresholds and the integrity report.

Belongs here: definitions of design.md section 2 as pure values. Does not: how they are counted.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from assetclass_pipeline.model.wire import Moment, Percent, Seconds, WireModel


class Category(StrEnum):
    """What `symbols` says about a symbol: exactly one holds for each."""

    MAPPABLE = "mappable"
    ORPHANED = "orphaned"
    UNCLASSIFIED = "unclassified"
    AMBIGUOUS = "ambiguous"


class Level(StrEnum):
    """How severe it is that a limit is not kept."""

    WARN = "warn"
    ERROR = "error"

    @property
    def other(self) -> "Level":
        """The second one."""
        return Level.WARN if self is Level.ERROR else Level.ERROR


_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class _Kind(NamedTuple):
    """How a value is compared with its limits, and how severe the guide's own limit is."""

    comparison: str
    severity: Level


_KINDS: Final = {
    "completeness": _Kind(">=", Level.ERROR),
    "integrity": _Kind(">=", Level.ERROR),
    "orphaned": _Kind("<", Level.ERROR),
    "quality_score": _Kind(">=", Level.WARN),
    "correctable": _Kind("<=", Level.WARN),
    "degradation": _Kind("<=", Level.WARN),
}


@dataclass(frozen=True)
class Limits:
    """The guide's limit of one value, and the limit of each level; None where a level has none."""

    guide: float
    warn: float | None
    error: float | None
    comparison: str
    severity: Level

    def keeps(self, value: float, limit: float) -> bool:
        """Whether `value` is on the right side of `limit`."""
        return _COMPARISONS[self.comparison](value, limit)

    def violated(self, value: float) -> Level | None:
        """The worst level whose limit `value` does not keep."""
        for level, limit in ((Level.ERROR, self.error), (Level.WARN, self.warn)):
            if limit is not None and not self.keeps(value, limit):
                return level
        return None

    def judge(self, value: float) -> "ThresholdResult":
        """One value, exact; `passed` speaks of the guide's limit alone."""
        return ThresholdResult(
            value=value,
            limit=self.guide,
            comparison=self.comparison,
            passed=self.keeps(value, self.guide),
            warn_limit=self.warn,
            error_limit=self.error,
            level=self.violated(value),
        )


class Thresholds(BaseModel):
    """Limits of the guide, percent 0..100 (durations in seconds).

    Those of completeness, integrity and orphaned rows are errors and may have an earlier warning;
    the others are warnings and may have a limit beyond which they are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    completeness_warn: float | None = Field(None, ge=0, le=100, description="an earlier warning")
    integrity_warn: float | None = Field(None, ge=0, le=100, description="an earlier warning")
    orphaned_warn: float | None = Field(None, ge=0, le=100, description="an earlier warning")
    quality_score_error: float | None = Field(None, ge=0, le=100, description="worse: an error")
    correctable_error: float | None = Field(None, ge=0, le=100, description="worse: an error")
    degradation_error: float | None = Field(None, ge=0, le=100, description="worse: an error")

    @model_validator(mode="after")
    def _warnings_come_first(self) -> "Thresholds":
        for name, kind in _KINDS.items():
            limits = self.limits(name)
            if limits.warn is None or limits.error is None:
                continue
            # A value that keeps the warning's limit must be far from the error's.
            if limits.warn == limits.error or not limits.keeps(limits.warn, limits.error):
                second = f"{name}_{kind.severity.other}"
                side = "above" if kind.comparison == ">=" else "below"
                raise ValueError(
                    f"{second} {getattr(self, second):g} contradicts {name} "
                    f"{limits.guide:g}: the warning's limit must be {side} the error's, so that "
                    "the warning comes first"
                )
        return self

    def limits(self, name: str) -> Limits:
        """Both levels of the threshold `name`, the name of its setting. Raises KeyError."""
        kind, guide = _KINDS[name], getattr(self, name)
        levels = {
            kind.severity: guide,
            kind.severity.other: getattr(self, f"{name}_{kind.severity.other}"),
        }
        return Limits(
            guide, levels[Level.WARN], levels[Level.ERROR], kind.comparison, kind.severity
        )


class ThresholdResult(WireModel):
    """One measured percent against its limit; `level` is the worst one that it violates."""

    value: Percent
    limit: Percent
    comparison: str = Field(description=">=, < or <=")
    passed: bool
    warn_limit: Percent | None = None
    error_limit: Percent | None = None
    level: Level | None = None

    @property
    def violated_limit(self) -> float:
        """The limit of `level`; the guide's where none is violated."""
        limits = {Level.WARN: self.warn_limit, Level.ERROR: self.error_limit}
        found = limits[self.level] if self.level else None
        return self.limit if found is None else found


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
    """Each percent against its limits, on exact values; only their JSON is rounded."""
    return {
        "completeness": limits.limits("completeness").judge(completeness),
        "integrity": limits.limits("integrity").judge(integrity),
        "orphanedPercent": limits.limits("orphaned").judge(orphaned_percent),
        "qualityScore": limits.limits("quality_score").judge(quality_score),
        "correctablePercent": limits.limits("correctable").judge(correctable_percent),
    }
