"""Assets that measure: the integrity report before a correction, the quality report after it.

Belongs here: asking the engine, storing the measurement, presenting it. Does not: counting.
"""

from dataclasses import dataclass

import dagster as dg

from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.assets.sources import GROUP, OWNERS, TAGS
from assetclass_pipeline.defs.checks import (
    integrity_check_specs,
    integrity_results,
    quality_check_specs,
    quality_results,
)
from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.presentation import Metadata, curve, report_metadata
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.runs import Materialized
from assetclass_pipeline.engine.analysis import (
    QualityPoint,
    analyse,
    quality_history,
    remember_quality,
)
from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.settings import Settings

INTEGRITY_REPORT = dg.AssetKey("integrity_report")
QUALITY_REPORT = dg.AssetKey("quality_report")

MOST_MEASUREMENTS = 200


def integrity_report_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset `integrity_report`."""

    @dg.asset(
        key=INTEGRITY_REPORT,
        description="The damage in market_data as it stands: totals, scores, symbols, months.",
        deps=["symbols", "market_data"],
        group_name=GROUP,
        owners=OWNERS,
        tags=TAGS,
        kinds={"postgres"},
        check_specs=integrity_check_specs(INTEGRITY_REPORT, settings.thresholds),
    )
    def integrity_report(
        context: dg.AssetExecutionContext, database: dg.ResourceParam[MarketDatabase]
    ) -> Materialized:
        report, history = _measure(database, INTEGRITY_REPORT.to_user_string(), context.run.run_id)
        return dg.MaterializeResult(
            metadata=report_metadata(report) | {"quality_score_history": _curve(history, report)},
            check_results=integrity_results(INTEGRITY_REPORT, report),
        )

    return integrity_report


def quality_report_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset `quality_report`."""

    @dg.asset(
        key=QUALITY_REPORT,
        description="What is right and wrong after the correction, measured by a fresh scan.",
        deps=["corrected_market_data", "symbols"],
        group_name=GROUP,
        owners=OWNERS,
        tags=TAGS,
        kinds={"postgres"},
        check_specs=quality_check_specs(QUALITY_REPORT, settings.thresholds),
    )
    def quality_report(
        context: dg.AssetExecutionContext, database: dg.ResourceParam[MarketDatabase]
    ) -> Materialized:
        measured = measure_quality(database, context.run.run_id)
        return dg.MaterializeResult(metadata=measured.metadata, check_results=measured.checks)

    return quality_report


@dataclass(frozen=True)
class MeasuredQuality:
    """A materialisation of `quality_report`: what it shows, and how its checks came out."""

    metadata: Metadata
    checks: list[dg.AssetCheckResult]


def measure_quality(database: MarketDatabase, run_id: str) -> MeasuredQuality:
    """Measure the data by a fresh scan and remember the report."""
    report, history = _measure(database, QUALITY_REPORT.to_user_string(), run_id)
    return MeasuredQuality(
        metadata=report_metadata(report) | {"quality_score_history": _curve(history, report)},
        checks=quality_results(
            QUALITY_REPORT,
            report,
            history[-1] if history else None,
            database.settings.thresholds,
        ),
    )


def _measure(
    database: MarketDatabase, source: str, run_id: str
) -> tuple[IntegrityReport, list[QualityPoint]]:
    """A fresh report, stored, and the earlier ones of the same source, oldest first."""
    settings = database.settings
    with readable_failures(), database.tables(purpose=source) as (connection, tables):
        require_schema(connection)
        earlier = quality_history(connection, settings, most=MOST_MEASUREMENTS)
        report = analyse(connection, tables, settings)
        remember_quality(connection, settings, report, source=source, run_id=run_id)
    return report, [point for point in earlier if point.source == source]


def _curve(history: list[QualityPoint], report: IntegrityReport) -> dg.MarkdownMetadataValue:
    return curve([*(point.quality_score for point in history), report.quality_score])
