"""Assets that measure: the integrity report before a correction, the quality report after it.

Belongs here: asking the engine, storing the measurement, presenting it. Does not: counting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg

from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.assets.sources import GROUP, OWNERS, TAGS
from assetclass_pipeline.defs.checks import (
    INTEGRITY_CHECKS,
    QUALITY_CHECKS,
    integrity_check_specs,
    integrity_results,
    not_computed,
    or_not_computed,
    quality_check_specs,
    quality_results,
)
from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.presentation import Metadata, curve, report_metadata
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.runs import Materialized, requester_of
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

Event = Materialized | dg.AssetCheckResult


def integrity_report_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset `integrity_report`."""

    @dg.multi_asset(
        name=INTEGRITY_REPORT.to_user_string(),
        specs=[
            _spec(
                INTEGRITY_REPORT,
                "The damage in market_data as it stands: totals, scores, symbols, months.",
                deps=["symbols", "market_data"],
            )
        ],
        check_specs=integrity_check_specs(INTEGRITY_REPORT, settings.thresholds),
    )
    def integrity_report(
        context: dg.AssetExecutionContext, database: dg.ResourceParam[MarketDatabase]
    ) -> Iterator[Event]:
        yield from or_not_computed(
            _materialized_integrity(database, context.run),
            lambda reason: not_computed(INTEGRITY_REPORT, INTEGRITY_CHECKS, reason, settings),
        )

    return integrity_report


def quality_report_asset(settings: Settings) -> dg.AssetsDefinition:
    """The asset `quality_report`."""

    @dg.multi_asset(
        name=QUALITY_REPORT.to_user_string(),
        specs=[
            _spec(
                QUALITY_REPORT,
                "What is right and wrong after the correction, measured by a fresh scan.",
                deps=["corrected_market_data", "symbols"],
            )
        ],
        check_specs=quality_check_specs(QUALITY_REPORT, settings.thresholds),
    )
    def quality_report(
        context: dg.AssetExecutionContext, database: dg.ResourceParam[MarketDatabase]
    ) -> Iterator[Event]:
        yield from or_not_computed(
            _materialized_quality(database, context.run),
            lambda reason: not_computed(QUALITY_REPORT, QUALITY_CHECKS, reason, settings),
        )

    return quality_report


def _spec(key: dg.AssetKey, description: str, *, deps: list[str]) -> dg.AssetSpec:
    return dg.AssetSpec(
        key,
        description=description,
        deps=deps,
        group_name=GROUP,
        owners=OWNERS,
        tags=TAGS,
        kinds={"postgres"},
    )


@dataclass(frozen=True)
class MeasuredQuality:
    """A materialisation of `quality_report`: what it shows, and how its checks came out."""

    metadata: Metadata
    checks: list[dg.AssetCheckResult]


def measure_quality(database: MarketDatabase, run: dg.DagsterRun) -> MeasuredQuality:
    """Measure the data by a fresh scan and remember the report."""
    report, history = _measure(database, QUALITY_REPORT.to_user_string(), run)
    previous = history[-1] if history else None
    return MeasuredQuality(
        metadata=report_metadata(report) | {"quality_score_history": _curve(history, report)},
        checks=quality_results(QUALITY_REPORT, report, previous, database.settings),
    )


def _materialized_quality(database: MarketDatabase, run: dg.DagsterRun) -> Iterator[Event]:
    measured = measure_quality(database, run)
    yield dg.MaterializeResult(metadata=measured.metadata, check_results=measured.checks)


def _materialized_integrity(database: MarketDatabase, run: dg.DagsterRun) -> Iterator[Event]:
    report, history = _measure(database, INTEGRITY_REPORT.to_user_string(), run)
    yield dg.MaterializeResult(
        metadata=report_metadata(report) | {"quality_score_history": _curve(history, report)},
        check_results=integrity_results(INTEGRITY_REPORT, report, database.settings),
    )


def _measure(
    database: MarketDatabase, source: str, run: dg.DagsterRun
) -> tuple[IntegrityReport, list[QualityPoint]]:
    """A fresh report, stored, and the earlier ones of the same source, oldest first."""
    settings = database.settings
    with readable_failures(), database.tables(purpose=source) as (connection, tables):
        require_schema(connection)
        earlier = quality_history(connection, settings, most=MOST_MEASUREMENTS)
        report = analyse(connection, tables, settings)
        remember_quality(
            connection, settings, report, source=source, run_id=run.run_id, by=requester_of(run)
        )
    return report, [point for point in earlier if point.source == source]


def _curve(history: list[QualityPoint], report: IntegrityReport) -> dg.MarkdownMetadataValue:
    return curve([*(point.quality_score for point in history), report.quality_score])
