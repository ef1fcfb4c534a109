"""The few numbers of a report that a person wants to see first, and its remarks.

Belongs here: choosing them. Does not: how they look.
"""

from assetclass_pipeline.model.quality import IntegrityReport
from assetclass_pipeline.reports.audit import AuditReport
from assetclass_pipeline.reports.capacity import CapacityReport
from assetclass_pipeline.reports.pages import Report
from assetclass_pipeline.reports.performance import PerformanceReport

Numbers = dict[str, int | float]


def key_numbers(report: Report) -> Numbers:
    """By name; percents are rounded to two decimals. What is not known is left out."""
    if isinstance(report, PerformanceReport):
        return _performance(report)
    if isinstance(report, CapacityReport):
        return _capacity(report)
    if isinstance(report, AuditReport):
        return {
            **_scores(report.integrity),
            "operations": report.outcome.operations,
            "records_corrected": report.outcome.records_corrected,
            "alerts": sum(each.opened for each in report.alerts),
            "audit_log_entries": report.audit_log.entries,
        }
    return _scores(report.report) if report.report else {}


def remarks(report: Report) -> list[str]:
    """What a person should look at, in sentences."""
    if isinstance(report, AuditReport):
        said = [
            f"{use.threshold.replace('_', ' ')}: {use.advice}"
            for use in report.limits
            if use.advice
        ]
        if not report.audit_log.whole:
            said.insert(0, f"The audit log was tampered with: {report.audit_log.broken}.")
        return said + report.integrity.recommendations
    if isinstance(report, PerformanceReport | CapacityReport):
        return report.findings
    return report.report.recommendations if report.report else ["Nothing was measured yet."]


def _scores(report: IntegrityReport) -> Numbers:
    return {
        "total_records": report.total_records,
        "completeness": round(report.completeness, 2),
        "integrity": round(report.integrity, 2),
        "orphaned_percent": round(report.orphaned_percent, 2),
        "quality_score": round(report.quality_score, 2),
        "correctable": report.correctable,
    }


def _performance(report: PerformanceReport) -> Numbers:
    outcome = report.now
    return _known(
        operations=outcome.operations,
        success_rate=outcome.success_rate,
        error_rate=outcome.error_rate,
        records_corrected=outcome.records_corrected,
        duration_median_seconds=outcome.duration_median,
        records_per_second=outcome.records_per_second,
        waited_seconds=outcome.waited_seconds,
    )


def _capacity(report: CapacityReport) -> Numbers:
    growth, days = report.records_a_month, report.days_until_full
    return _known(
        total_records=report.total_records,
        table_bytes=report.table_bytes,
        index_bytes=report.index_bytes,
        backup_bytes=report.backup_bytes,
        archive_bytes=report.archive_bytes,
        records_a_month=growth.likely if growth else None,
        days_until_full=days.likely if days else None,
    )


def _known(**numbers: float | None) -> Numbers:
    return {name: round(value, 2) for name, value in numbers.items() if value is not None}
