"""Asset checks: their names and descriptions, and how a measurement becomes a result.

Belongs here: what is checked and how severely. Does not: measuring, and where the limits come from.
"""

from dataclasses import dataclass

import dagster as dg

from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.presentation import reference_metadata
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.engine.analysis import QualityPoint
from assetclass_pipeline.engine.reference import check_reference
from assetclass_pipeline.model.operation import Operation, Proof
from assetclass_pipeline.model.quality import IntegrityReport, Thresholds

ERROR = dg.AssetCheckSeverity.ERROR
WARN = dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class ThresholdCheck:
    """A check of one threshold of the integrity report; its name says the limit of the guide."""

    name: str
    threshold: str
    setting: str
    meaning: str

    def spec(self, asset: dg.AssetKey, limits: Thresholds) -> dg.AssetCheckSpec:
        """The check on `asset`, described with the limit that is really set."""
        limit = getattr(limits, self.setting)
        return dg.AssetCheckSpec(self.name, asset=asset, description=f"{self.meaning} {limit:g} %.")

    def result(
        self, asset: dg.AssetKey, report: IntegrityReport, severity: dg.AssetCheckSeverity
    ) -> dg.AssetCheckResult:
        """The threshold as `report` measured it."""
        found = report.thresholds[self.threshold]
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=self.name,
            passed=found.passed,
            severity=severity,
            description=f"{found.value:.2f} %, must be {found.comparison} {found.limit:g} %",
            metadata={"value": round(found.value, 2), "limit": found.limit},
        )


GUIDE_THRESHOLDS = (
    ThresholdCheck(
        "completeness_at_least_95",
        "completeness",
        "completeness",
        "Rows whose asset_class is neither NULL nor empty: at least",
    ),
    ThresholdCheck(
        "integrity_at_least_90",
        "integrity",
        "integrity",
        "Rows whose class can be derived from symbols: at least",
    ),
    ThresholdCheck(
        "orphaned_below_5",
        "orphanedPercent",
        "orphaned",
        "Rows whose symbol has no ticker in symbols: below",
    ),
)
QUALITY_THRESHOLDS = (
    ThresholdCheck(
        "quality_score_at_least_90",
        "qualityScore",
        "quality_score",
        "Mappable rows whose class equals their symbol's: at least",
    ),
    ThresholdCheck(
        "correctable_at_most_10_percent",
        "correctablePercent",
        "correctable",
        "Missing rows that a correction could fill: at most",
    ),
)

QUALITY_DID_NOT_DEGRADE = "quality_did_not_degrade"
BACKUP_IS_COMPLETE = "backup_is_complete"
NO_ROW_LOST_OR_INVENTED = "no_row_lost_or_invented"
REFERENCE_IS_SOUND = "reference_is_sound"


def integrity_check_specs(asset: dg.AssetKey, limits: Thresholds) -> list[dg.AssetCheckSpec]:
    """The guide's three thresholds on `asset`."""
    return [check.spec(asset, limits) for check in GUIDE_THRESHOLDS]


def quality_check_specs(asset: dg.AssetKey, limits: Thresholds) -> list[dg.AssetCheckSpec]:
    """Every threshold of the guide, and the comparison with the report before."""
    return [
        *integrity_check_specs(asset, limits),
        *(check.spec(asset, limits) for check in QUALITY_THRESHOLDS),
        dg.AssetCheckSpec(
            QUALITY_DID_NOT_DEGRADE,
            asset=asset,
            description=(
                "Quality score lost since the previous quality_report: at most "
                f"{limits.degradation:g} points."
            ),
        ),
    ]


def integrity_results(asset: dg.AssetKey, report: IntegrityReport) -> list[dg.AssetCheckResult]:
    """The three thresholds as warnings: before a correction, damage is what one expects."""
    return [check.result(asset, report, WARN) for check in GUIDE_THRESHOLDS]


def quality_results(
    asset: dg.AssetKey, report: IntegrityReport, previous: QualityPoint | None, limits: Thresholds
) -> list[dg.AssetCheckResult]:
    """All checks of the quality report; `previous` is the report before this one."""
    return [
        *(check.result(asset, report, ERROR) for check in GUIDE_THRESHOLDS),
        *(check.result(asset, report, WARN) for check in QUALITY_THRESHOLDS),
        _degradation(asset, report, previous, limits),
    ]


def _degradation(
    asset: dg.AssetKey, report: IntegrityReport, previous: QualityPoint | None, limits: Thresholds
) -> dg.AssetCheckResult:
    before = previous.quality_score if previous else report.quality_score
    lost = before - report.quality_score
    description = (
        f"{report.quality_score:.2f} % after {before:.2f} % "
        f"({previous.measured_at:%Y-%m-%d %H:%M}), at most {limits.degradation:g} points lower"
        if previous
        else "the first quality report: there is nothing to compare with yet"
    )
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=QUALITY_DID_NOT_DEGRADE,
        passed=lost <= limits.degradation,
        severity=WARN,
        description=description,
        metadata={"points_lost": round(lost, 2), "limit": limits.degradation},
    )


def backup_check_spec(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """Blocking: what the backup misses could not be undone."""
    return dg.AssetCheckSpec(
        BACKUP_IS_COMPLETE,
        asset=asset,
        blocking=True,
        description="The backup table holds exactly the planned rows; else nothing is corrected.",
    )


def backup_result(asset: dg.AssetKey, operation: Operation, found: int) -> dg.AssetCheckResult:
    """`found` rows of the backup table against what the operation planned."""
    planned = operation.records_planned or 0
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=BACKUP_IS_COMPLETE,
        passed=found == planned,
        severity=ERROR,
        description=f"{found:,} rows in the backup table, {planned:,} planned",
        metadata={"rows_found": found, "records_planned": planned},
    )


def proof_check_spec(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The ledger's sums against the plan."""
    return dg.AssetCheckSpec(
        NO_ROW_LOST_OR_INVENTED,
        asset=asset,
        description="Each planned row is either corrected or skipped with a reason, and once only.",
    )


def proof_result(asset: dg.AssetKey, proof: Proof) -> dg.AssetCheckResult:
    """Planned = corrected + skipped, with nothing open and nothing over."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=NO_ROW_LOST_OR_INVENTED,
        passed=proof.unaccounted == 0 and proof.open == 0,
        severity=ERROR,
        description=(
            f"{proof.planned:,} planned = {proof.corrected:,} corrected + {proof.skipped:,} "
            f"skipped + {proof.open:,} open + {proof.unaccounted:,} unaccounted for"
        ),
        metadata={
            "records_planned": proof.planned,
            "records_corrected": proof.corrected,
            "records_skipped": proof.skipped,
            "records_open": proof.open,
            "records_unaccounted": proof.unaccounted,
        },
    )


@dg.asset_check(
    asset=dg.AssetKey("symbols"),
    name=REFERENCE_IS_SOUND,
    description=(
        "Some ticker is mappable, and none is NULL or empty. Ambiguous, unclassified and padded "
        "tickers are counted with examples."
    ),
)
def reference_is_sound(database: dg.ResourceParam[MarketDatabase]) -> dg.AssetCheckResult:
    """Whether corrections can rely on `symbols`."""
    with readable_failures(), database.tables(purpose="reference check") as (connection, tables):
        report = check_reference(connection, tables, database.settings)
    return dg.AssetCheckResult(
        passed=report.is_sound,
        severity=ERROR if report.mappable == 0 else WARN,
        description=(
            f"{report.mappable:,} of {report.tickers:,} tickers are mappable; "
            f"{report.null_tickers + report.empty_tickers:,} rows have no ticker"
        ),
        metadata=reference_metadata(report),
    )
