"""Asset checks: their names and descriptions, and how a measurement becomes a result.

Belongs here: what is checked and how severely. Does not: measuring, and where the limits come from.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import dagster as dg

from assetclass_pipeline.defs.failures import readable_failures, reason_of
from assetclass_pipeline.defs.presentation import (
    Metadata,
    reference_metadata,
    runbook,
    worst_metadata,
)
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.engine.analysis import QualityPoint
from assetclass_pipeline.engine.reference import check_reference
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.backup import Backup, BackupState
from assetclass_pipeline.model.excess import excess
from assetclass_pipeline.model.operation import Operation, Proof
from assetclass_pipeline.model.quality import IntegrityReport, Level, Limits, Thresholds
from assetclass_pipeline.settings import Settings

ERROR = dg.AssetCheckSeverity.ERROR
WARN = dg.AssetCheckSeverity.WARN

_SEVERITIES: Final = {Level.ERROR: ERROR, Level.WARN: WARN}
_MOST_WORST = 10

Event = TypeVar("Event")


@dataclass(frozen=True)
class ThresholdCheck:
    """A check of one threshold of the integrity report; its name says the limit of the guide."""

    name: str
    threshold: str
    setting: str
    meaning: str
    alert_type: AlertType
    what_to_do: str

    def spec(self, asset: dg.AssetKey, limits: Thresholds) -> dg.AssetCheckSpec:
        """The check on `asset`, described with the limits that are really set."""
        described = _described(self.meaning, limits.limits(self.setting), "%")
        return dg.AssetCheckSpec(self.name, asset=asset, description=described)

    def result(
        self,
        asset: dg.AssetKey,
        report: IntegrityReport,
        settings: Settings,
        *,
        only_warns: bool = False,
    ) -> dg.AssetCheckResult:
        """The threshold as `report` measured it, as severe as the worst level that it violates."""
        found = report.thresholds[self.threshold]
        severity = found.level or settings.thresholds.limits(self.setting).severity
        limit = found.violated_limit
        metadata: Metadata = {"value": round(found.value, 2), "limit": limit}
        if found.level:
            against = excess(report, self.threshold, most=_MOST_WORST)
            metadata |= {
                "level_violated": found.level.value,
                "damaged_rows": against.damaged,
                "rows_over_the_limit": against.over,
                **worst_metadata(against),
            }
        return _result(
            asset,
            self.name,
            passed=found.level is None,
            severity=WARN if only_warns else _SEVERITIES[severity],
            description=f"{found.value:.2f} %, must be {found.comparison} {limit:g} %",
            metadata=metadata,
            advice=_Advice(self.what_to_do, settings, self.alert_type),
        )


@dataclass(frozen=True)
class _Advice:
    """What people do about a check that failed, and where that is explained."""

    what_to_do: str
    settings: Settings
    alert_type: AlertType = AlertType.ASSET_CHECK_FAILED

    @property
    def metadata(self) -> Metadata:
        return {
            "what_to_do": self.what_to_do,
            "runbook": runbook(self.settings, self.alert_type),
        }


def _result(
    asset: dg.AssetKey,
    name: str,
    *,
    passed: bool,
    description: str,
    metadata: Metadata,
    advice: _Advice,
    severity: dg.AssetCheckSeverity = ERROR,
) -> dg.AssetCheckResult:
    """A check's result; only a failed one carries the advice."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=passed,
        severity=severity,
        description=description,
        metadata=metadata if passed else {**metadata, **advice.metadata},
    )


def _described(meaning: str, limits: Limits, unit: str) -> str:
    """A sentence with the guide's limit; a second level, where there is one, in brackets."""
    second = limits.warn if limits.severity is Level.ERROR else limits.error
    said = f"{meaning} {limits.guide:g} {unit}"
    if second is None:
        return f"{said}."
    word = "a warning" if limits.severity is Level.ERROR else "an error"
    return f"{said} ({word} from {second:g} {unit})."


_MEND = (
    "Look at the worst symbols. `assetclass preview` says what a correction would fill; what it "
    "cannot fill lacks a usable class in symbols."
)

GUIDE_THRESHOLDS = (
    ThresholdCheck(
        "completeness_at_least_95",
        "completeness",
        "completeness",
        "Rows whose asset_class is neither NULL nor empty: at least",
        AlertType.LOW_DATA_QUALITY,
        _MEND,
    ),
    ThresholdCheck(
        "integrity_at_least_90",
        "integrity",
        "integrity",
        "Rows whose class can be derived from symbols: at least",
        AlertType.LOW_DATA_QUALITY,
        "Give the worst symbols one class in symbols: they are unknown there, without a class, or "
        "listed with several. `assetclass analyze` tells which.",
    ),
    ThresholdCheck(
        "orphaned_below_5",
        "orphanedPercent",
        "orphaned",
        "Rows whose symbol has no ticker in symbols: below",
        AlertType.HIGH_ORPHANED_RECORDS,
        "Add the worst symbols to symbols, or remove their rows: a feed may have started before "
        "its reference data, or tickers were renamed.",
    ),
)
QUALITY_THRESHOLDS = (
    ThresholdCheck(
        "quality_score_at_least_90",
        "qualityScore",
        "quality_score",
        "Mappable rows whose class equals their symbol's: at least",
        AlertType.LOW_DATA_QUALITY,
        "Missing rows: `assetclass execute`. Mismatched rows: decide which side is right, then "
        "`assetclass preview --overwrite-existing`.",
    ),
    ThresholdCheck(
        "correctable_at_most_10_percent",
        "correctablePercent",
        "correctable",
        "Missing rows that a correction could fill: at most",
        AlertType.LOW_DATA_QUALITY,
        "`assetclass preview`, then `assetclass execute`; or wait for tonight's correction.",
    ),
)

NOT_COMPUTED = "could not be computed"
"""How the description of a check begins that nobody could compute."""

QUALITY_DID_NOT_DEGRADE = "quality_did_not_degrade"
BACKUP_IS_COMPLETE = "backup_is_complete"
NO_ROW_LOST_OR_INVENTED = "no_row_lost_or_invented"
REFERENCE_IS_SOUND = "reference_is_sound"

INTEGRITY_CHECKS = tuple(check.name for check in GUIDE_THRESHOLDS)
QUALITY_CHECKS = (
    *INTEGRITY_CHECKS,
    *(check.name for check in QUALITY_THRESHOLDS),
    QUALITY_DID_NOT_DEGRADE,
)


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
            description=_described(
                "Quality score lost since the previous quality_report: at most",
                limits.limits("degradation"),
                "points",
            ),
        ),
    ]


def integrity_results(
    asset: dg.AssetKey, report: IntegrityReport, settings: Settings
) -> list[dg.AssetCheckResult]:
    """The three thresholds as warnings: before a correction, damage is what one expects."""
    return [check.result(asset, report, settings, only_warns=True) for check in GUIDE_THRESHOLDS]


def quality_results(
    asset: dg.AssetKey, report: IntegrityReport, previous: QualityPoint | None, settings: Settings
) -> list[dg.AssetCheckResult]:
    """All checks of the quality report; `previous` is the report before this one."""
    return [
        *(check.result(asset, report, settings) for check in GUIDE_THRESHOLDS),
        *(check.result(asset, report, settings) for check in QUALITY_THRESHOLDS),
        _degradation(asset, report, previous, settings),
    ]


def _degradation(
    asset: dg.AssetKey, report: IntegrityReport, previous: QualityPoint | None, settings: Settings
) -> dg.AssetCheckResult:
    limits = settings.thresholds.limits("degradation")
    before = previous.quality_score if previous else report.quality_score
    found = limits.judge(before - report.quality_score)
    limit = found.violated_limit
    description = (
        f"{report.quality_score:.2f} % after {before:.2f} % "
        f"({previous.measured_at:%Y-%m-%d %H:%M}), at most {limit:g} points lower"
        if previous
        else "the first quality report: there is nothing to compare with yet"
    )
    metadata: Metadata = {"points_lost": round(found.value, 2), "limit": limit}
    if previous and found.level:
        metadata |= {
            "level_violated": found.level.value,
            "quality_score": round(report.quality_score, 2),
            "quality_score_before": round(before, 2),
            "measured_before_at": f"{previous.measured_at:%Y-%m-%dT%H:%M:%SZ}",
            "rows_before": previous.total_records,
            "rows": report.total_records,
            **worst_metadata(excess(report, "qualityScore", most=_MOST_WORST)),
        }
    return _result(
        asset,
        QUALITY_DID_NOT_DEGRADE,
        passed=found.level is None,
        severity=_SEVERITIES[found.level or limits.severity],
        description=description,
        metadata=metadata,
        advice=_Advice(
            "Find what came in or changed since the report before: new feeds, renamed tickers, an "
            "edit of symbols, a rollback. `assetclass audit list` shows operations.",
            settings,
            AlertType.DATA_QUALITY_DEGRADED,
        ),
    )


def or_not_computed(
    events: Iterator[Event], missing: Callable[[str], Iterable[Event]]
) -> Iterator[Event]:
    """`events`; where making one fails, what `missing` makes of the reason, and then the error.

    So a check that cannot be computed has failed, which a check without a word has not.
    """
    try:
        yield from events
    except Exception as error:
        yield from missing(reason_of(error))
        raise


def not_computed(
    asset: dg.AssetKey, names: Iterable[str], reason: str, settings: Settings
) -> list[dg.AssetCheckResult]:
    """Checks of `asset` that nobody could compute: each failed, as an error."""
    advice = _Advice(
        "Mend that, then materialise the asset again; `assetclass doctor` looks at database, "
        "rights and disk.",
        settings,
    )
    return [
        _result(
            asset,
            name,
            passed=False,
            description=f"{NOT_COMPUTED}: {reason}",
            metadata={"reason": reason},
            advice=advice,
        )
        for name in names
    ]


def backup_check_spec(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """Blocking: what the backup misses could not be undone."""
    return dg.AssetCheckSpec(
        BACKUP_IS_COMPLETE,
        asset=asset,
        blocking=True,
        description="The backup table holds exactly the planned rows; else nothing is corrected.",
    )


_ALTERED_BEFORE: Final = (
    "Somebody wrote to the backup table. Nothing was corrected: drop no table, find out who, then "
    "start a new correction, which makes its own backup."
)
_ALTERED_SINCE: Final = (
    "Somebody wrote to the backup table after the correction. Drop no table and find out who; "
    "`assetclass backups verify` says what it can still restore."
)


def backup_result(
    asset: dg.AssetKey, operation: Operation, found: int, settings: Settings
) -> dg.AssetCheckResult:
    """`found` rows of the backup table against what the operation planned."""
    planned = operation.records_planned or 0
    metadata: Metadata = {"rows_found": found, "records_planned": planned}
    if found != planned:
        metadata |= {
            "correction_id": operation.correction_id,
            "backup_table": operation.backup_table or "none",
        }
    return _result(
        asset,
        BACKUP_IS_COMPLETE,
        passed=found == planned,
        description=f"{found:,} rows in the backup table, {planned:,} planned",
        metadata=metadata,
        advice=_Advice(
            _ALTERED_SINCE if operation.records_corrected else _ALTERED_BEFORE, settings
        ),
    )


def dropped_backup_result(
    asset: dg.AssetKey, operation: Operation, backup: Backup, settings: Settings
) -> dg.AssetCheckResult:
    """A backup that is there no more: the cleanup may drop it, and nobody else."""
    return _result(
        asset,
        BACKUP_IS_COMPLETE,
        passed=backup.state is not BackupState.DROPPED_BY_HAND,
        description=f"the backup table {backup.why}",
        metadata={
            "records_planned": operation.records_planned or 0,
            "correction_id": operation.correction_id,
            "backup_table": backup.table_name,
        },
        advice=_Advice(
            "Find out who dropped it: without it this operation cannot be rolled back, and its "
            "rows are in no archive. Bring that table back from a backup of the database.",
            settings,
        ),
    )


def proof_check_spec(asset: dg.AssetKey) -> dg.AssetCheckSpec:
    """The ledger's sums against the plan."""
    return dg.AssetCheckSpec(
        NO_ROW_LOST_OR_INVENTED,
        asset=asset,
        description="Each planned row is either corrected or skipped with a reason, and once only.",
    )


def proof_result(asset: dg.AssetKey, proof: Proof, settings: Settings) -> dg.AssetCheckResult:
    """Planned = corrected + skipped, with nothing open and nothing over."""
    return _result(
        asset,
        NO_ROW_LOST_OR_INVENTED,
        passed=proof.unaccounted == 0 and proof.open == 0,
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
        advice=_Advice(
            "Open rows: re-execute the run, which goes on with them. Unaccounted ones: the ledger "
            "was altered; keep the backup table and call the next level.",
            settings,
        ),
    )


_SYMBOLS = dg.AssetKey("symbols")


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            REFERENCE_IS_SOUND,
            asset=_SYMBOLS,
            description=(
                "Some ticker is mappable, and none is NULL or empty. Ambiguous, unclassified and "
                "padded tickers are counted with examples."
            ),
        )
    ],
    name=f"symbols_{REFERENCE_IS_SOUND}",
)
def reference_is_sound(
    database: dg.ResourceParam[MarketDatabase],
) -> Iterator[dg.AssetCheckResult]:
    """Whether corrections can rely on `symbols`."""
    settings = database.settings
    yield from or_not_computed(
        _check_reference(database),
        lambda reason: not_computed(_SYMBOLS, [REFERENCE_IS_SOUND], reason, settings),
    )


def _check_reference(database: MarketDatabase) -> Iterator[dg.AssetCheckResult]:
    settings = database.settings
    with readable_failures(), database.tables(purpose="reference check") as (connection, tables):
        report = check_reference(connection, tables, settings)
    yield _result(
        _SYMBOLS,
        REFERENCE_IS_SOUND,
        passed=report.is_sound,
        severity=ERROR if report.mappable == 0 else WARN,
        description=(
            f"{report.mappable:,} of {report.tickers:,} tickers are mappable; "
            f"{report.null_tickers + report.empty_tickers:,} rows have no ticker"
        ),
        metadata=reference_metadata(report),
        advice=_Advice(
            "Mend symbols: rows without a ticker help nobody, and without a mappable ticker "
            "nothing can be corrected. Was its last load complete?",
            settings,
        ),
    )
