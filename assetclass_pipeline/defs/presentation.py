"""Engine results as Dagster metadata: numbers that plot themselves, tables, a small curve.

Belongs here: shapes of metadata. Does not: asking the engine.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from assetclass_pipeline.engine.planned_months import RolledBackMonth
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.backup import CleanupReport, DrillReport
from assetclass_pipeline.model.excess import Excess
from assetclass_pipeline.model.operation import Conflict, Operation, SkipReason
from assetclass_pipeline.model.preflight import Preflight
from assetclass_pipeline.model.preview import Preview
from assetclass_pipeline.model.quality import IntegrityReport, PartitionCount
from assetclass_pipeline.model.reference import ReferenceReport
from assetclass_pipeline.settings import Settings

Cell = str | int | float | bool | None
Metadata = dict[str, dg.MetadataValue | int | float | str]

MOST_ROWS = 50
# Markdown above 1,000 characters is folded away by the UI.
MOST_POINTS = 24


def report_metadata(report: IntegrityReport) -> Metadata:
    """Totals and scores as numbers; classes, worst symbols, months and thresholds as tables."""
    return {
        "total_records": report.total_records,
        "missing": report.missing,
        "correctable": report.correctable,
        "mismatched": report.mismatched,
        "orphaned": report.orphaned,
        "unclassified": report.unclassified,
        "ambiguous": report.ambiguous,
        "completeness": round(report.completeness, 2),
        "integrity": round(report.integrity, 2),
        "orphaned_percent": round(report.orphaned_percent, 2),
        "quality_score": round(report.quality_score, 2),
        "analysis_seconds": round(report.analysis_duration_seconds, 3),
        "thresholds": table(
            {"threshold": name, **result.model_dump(mode="json")}
            for name, result in report.thresholds.items()
        ),
        "classes": table(
            {"asset_class": shown(count.asset_class), "records": count.records}
            for count in report.by_asset_class
        ),
        "worst_symbols": table(count.model_dump(mode="json") for count in report.by_symbol),
        "months": table(month.model_dump(mode="json") for month in _worst_months(report)),
        "issues": table(issue.model_dump(mode="json") for issue in report.issues),
        "next_steps": dg.MetadataValue.md(
            "\n".join(f"- {step}" for step in report.recommendations)
        ),
    }


def operation_metadata(operation: Operation) -> Metadata:
    """What one operation did, as numbers; its id, backup table and the command to look at it.

    Besides, where there is something to say: the estimate and how far it was off, waits by signal,
    rows that the database refused, and what the preflight found.
    """
    return {
        "correction_id": operation.correction_id,
        "records_planned_in_all": operation.records_planned or 0,
        "records_corrected_in_all": operation.records_corrected,
        "records_skipped_in_all": operation.records_skipped,
        **_course_metadata(operation),
    }


def rollback_metadata(operation: Operation) -> Metadata:
    """What one rollback restored or, as a dry run, would restore, and what it left alone.

    Both ids, the scores before and after, changes and conflicts as tables.
    """
    return {
        **_rollback_ids(operation),
        **_restored_metadata(operation),
        "records_conflicting": operation.records_conflicting or 0,
        "records_skipped": operation.records_skipped,
        **_scores_metadata("before", operation.quality_before),
        # Under a name of its own: what did not happen is no point of the same curve.
        **_scores_metadata("expected" if operation.dry_run else "after", operation.quality_after),
        "conflicts": conflicts_table(operation.conflicts),
        "changes": changes_table(operation),
        **_course_metadata(operation),
    }


def rollback_month_metadata(operation: Operation, month: RolledBackMonth) -> Metadata:
    """What one rollback did to the rows of one month."""
    return {
        **_rollback_ids(operation),
        "records_restored": month.restored,
        "records_conflicting": month.conflicting,
        "look_at_it": _look_at(operation),
    }


def _rollback_ids(operation: Operation) -> Metadata:
    return {
        "correction_id": operation.rollback_of or "",
        "rollback_id": operation.correction_id,
        "reason": operation.reason or "",
    }


def _restored_metadata(operation: Operation) -> Metadata:
    """Of the rows that have their old value, some had it before the rollback touched them."""
    restored = operation.records_restored or 0
    if operation.dry_run:
        return {
            "records_to_restore": operation.records_planned or 0,
            "records_already_restored": restored,
        }
    return {"records_restored": restored, "records_written": operation.records_corrected}


def _scores_metadata(when: str, quality: Mapping[str, Any] | None) -> Metadata:
    scores = {"completeness": "completeness", "quality_score": "qualityScore"}
    return {f"{name}_{when}": quality[key] for name, key in scores.items()} if quality else {}


def _look_at(operation: Operation) -> dg.PathMetadataValue:
    return dg.MetadataValue.path(f"assetclass status {operation.correction_id}")


def _course_metadata(operation: Operation) -> Metadata:
    """How an operation of either kind got on."""
    metadata: Metadata = {
        "batches": operation.batches_done,
        "duration_seconds": round(operation.duration_seconds or 0.0, 3),
        "look_at_it": _look_at(operation),
    }
    if operation.records_per_second:
        metadata["records_per_second"] = round(operation.records_per_second, 1)
    if operation.backup_table:
        metadata["backup_table"] = dg.MetadataValue.path(operation.backup_table)
    if operation.estimated_seconds:
        metadata |= _range(operation.estimated_seconds.low, operation.estimated_seconds.high)
    if operation.estimate_error_percent is not None:
        metadata["estimate_error_percent"] = round(operation.estimate_error_percent, 1)
    if operation.waits:
        metadata["waited_seconds"] = round(sum(operation.waits.values()), 1)
        metadata["waits"] = table(
            {"signal": signal, "seconds": round(seconds, 1)}
            for signal, seconds in operation.waits.items()
        )
    if operation.records_failed:
        metadata["records_refused_in_all"] = operation.records_failed
        metadata["refused"] = table(row.model_dump(mode="json") for row in operation.quarantined)
    if operation.preflight:
        metadata |= _preflight_metadata(Preflight.model_validate(operation.preflight))
    return metadata


def _range(low: float, high: float) -> Metadata:
    return {"estimated_seconds_low": round(low, 1), "estimated_seconds_high": round(high, 1)}


def _preflight_metadata(preflight: Preflight) -> Metadata:
    """Findings, the gravest first, and the bytes and the batch that were measured, if any."""
    rehearsal = preflight.rehearsal
    figures = {
        "disk_needed_bytes": preflight.disk_needed_bytes,
        "disk_free_bytes": preflight.disk_free_bytes,
        "wal_bytes": preflight.wal_bytes,
        "rehearsed_records": None if rehearsal is None else rehearsal.records,
        "rehearsed_seconds": None if rehearsal is None else round(rehearsal.seconds, 3),
    }
    metadata: Metadata = {name: value for name, value in figures.items() if value is not None}
    if preflight.findings:
        metadata["preflight"] = table(
            {
                "severity": finding.severity.value,
                "finding": finding.code,
                "message": finding.message,
            }
            for finding in preflight.findings
        )
    return metadata


def changes_table(operation: Operation) -> dg.TableMetadataValue:
    """Rows by symbol, old and new class, most first."""
    return table(
        {
            "symbol": shown(change.symbol),
            "from": shown(change.from_),
            "to": shown(change.to),
            "records": change.records,
        }
        for change in operation.changes
    )


def conflicts_table(conflicts: Iterable[Conflict]) -> dg.TableMetadataValue:
    """Rows that a rollback left alone, with their class then and now."""
    return table(
        {
            "id": shown(row.id),
            "symbol": shown(row.symbol),
            "timestamp": shown(row.timestamp),
            "before": shown(row.before),
            "corrected": shown(row.corrected),
            "now": "(no such row)" if row.reason == SkipReason.DELETED else shown(row.now),
            "reason": row.reason.replace("_", " "),
        }
        for row in conflicts
    )


def skipped_table(operation: Operation) -> dg.TableMetadataValue:
    """Planned rows that were not written, by reason."""
    return table(
        {"reason": reason, "records": records}
        for reason, records in sorted(operation.skipped_by_reason.items())
    )


def preview_metadata(preview: Preview) -> Metadata:
    """What a dry run found: counts, the estimate, samples, risks, and the preflight."""
    return {
        "records": preview.records,
        "batches": preview.batches,
        "batch_size": preview.batch_size,
        "workers": preview.workers,
        **_range(preview.estimated_seconds.low, preview.estimated_seconds.high),
        "changes": table(
            {"from": shown(change.from_), "to": change.to, "records": change.records}
            for change in preview.changes
        ),
        "samples": table(
            {
                "id": str(sample.id),
                "symbol": sample.symbol,
                "timestamp": sample.timestamp,
                "before": shown(sample.before),
                "after": sample.after,
            }
            for sample in preview.samples
        ),
        "risks": dg.MetadataValue.md("\n".join(f"- {risk}" for risk in preview.risks) or "none"),
        **_preflight_metadata(preview.preflight),
    }


def reference_metadata(report: ReferenceReport) -> Metadata:
    """Tickers by what can be derived from them, with examples of those that cannot be trusted."""
    return {
        "records": report.records,
        "tickers": report.tickers,
        "mappable": report.mappable,
        "ambiguous": report.ambiguous,
        "unclassified": report.unclassified,
        "padded": report.padded,
        "null_tickers": report.null_tickers,
        "empty_tickers": report.empty_tickers,
        "classes": table(
            {"asset_class": shown(count.asset_class), "tickers": count.records}
            for count in report.classes
        ),
        "examples": table(
            {"problem": problem, "ticker": sample.ticker, "classes": ", ".join(sample.classes)}
            for problem, samples in sorted(report.samples.items())
            for sample in samples
        ),
    }


def cleanup_metadata(report: CleanupReport) -> Metadata:
    """What a cleanup dropped and kept, each table with its reason; and what it noticed."""
    return {
        "dropped": len(report.dropped),
        "kept": len(report.kept),
        "bytes_freed": 0 if report.dry_run else sum(each.bytes or 0 for each in report.dropped),
        "dropped_tables": table(each.model_dump(mode="json") for each in report.dropped),
        "kept_tables": table(each.model_dump(mode="json") for each in report.kept),
        "dropped_by_hand": table({"correction_id": name} for name in report.noticed),
        "unregistered_tables": table(each.model_dump(mode="json") for each in report.unregistered),
        "archives_removed": table({"file": name} for name in report.archives_removed),
    }


def drill_metadata(report: DrillReport) -> Metadata:
    """What a drill restored and how fast, beside the limit; times in seconds."""
    metadata: Metadata = {
        "correction_id": report.correction_id,
        "backup_table": dg.MetadataValue.path(report.table),
        "records": report.records,
        "restored": report.restored,
        "deleted_since": report.missing,
        "different": report.different,
        "duration_seconds": round(report.duration_seconds, 3),
        "restore_seconds": round(report.restore_seconds, 3),
        "market_records": report.market_records,
        "limit_seconds": report.limit_seconds,
        "within_limit": dg.MetadataValue.bool(report.within_limit),
    }
    if report.records_per_second is not None:
        metadata["records_per_second"] = round(report.records_per_second, 1)
    if report.whole_restore_seconds is not None:
        metadata["whole_restore_seconds"] = round(report.whole_restore_seconds, 1)
    return metadata


def table(rows: Iterable[Mapping[str, Cell]]) -> dg.TableMetadataValue:
    """The first rows as a table; an empty one says so in words, for the UI shows nothing else."""
    records = [dg.TableRecord(dict(row)) for row, _ in zip(rows, range(MOST_ROWS), strict=False)]
    return dg.MetadataValue.table(records or [dg.TableRecord({"result": "none"})])


def runbook(settings: Settings, alert_type: AlertType) -> dg.MetadataValue:
    """The page about an alert: a link where runbooks are on the web, else a path to copy."""
    page = f"{settings.alerts.runbooks_url.rstrip('/')}/{alert_type.runbook}"
    if page.startswith(("https://", "http://")):
        return dg.MetadataValue.url(page)
    return dg.MetadataValue.path(page)


def worst_metadata(found: Excess) -> Metadata:
    """Which symbols and months hold the damage."""
    return {
        "worst_symbols": table(
            {"symbol": shown(each.name), "damaged": each.damaged, "records": each.records}
            for each in found.worst_symbols
        ),
        "worst_months": table(
            {"month": each.name, "damaged": each.damaged, "records": each.records}
            for each in found.worst_months
        ),
    }


def shown(value: str | None) -> str:
    """A class as people can tell NULL from the empty string."""
    if value is None:
        return "(NULL)"
    return value or "(empty)"


def curve(values: Sequence[float], name: str = "quality score") -> dg.MarkdownMetadataValue:
    """The newest values, scores (0..100) for example, as a small line for light and dark themes."""
    points = list(values)[-MOST_POINTS:]
    if len(points) <= 1:
        return dg.MetadataValue.md("A curve is drawn from the second measurement on.")
    low, high = min(points), max(points)
    spread = (high - low) or 1.0
    step = 160 / (len(points) - 1)
    line = " ".join(
        f"{number * step:.0f},{28 - (value - low) / spread * 24:.0f}"
        for number, value in enumerate(points)
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="160" height="32">'
        f'<polyline fill="none" stroke="#4F8FF7" stroke-width="2" points="{line}"/></svg>'
    )
    encoded = base64.b64encode(svg.encode()).decode()
    return dg.MetadataValue.md(
        f"![{name}]({'data:image/svg+xml;base64,' + encoded}) {low:.2f} to {high:.2f}"
    )


def _worst_months(report: IntegrityReport) -> list[PartitionCount]:
    """Months with damage first, then the newest ones."""
    by_age = sorted(report.by_partition, key=lambda month: month.partition, reverse=True)
    return sorted(by_age, key=lambda month: month.missing + month.mismatched, reverse=True)
