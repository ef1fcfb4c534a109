"""Jobs that write reports: weekly performance, monthly audit, quarterly capacity.

Belongs here: ops that ask for a report, store it and show where it is; when they run. Does not: the
numbers, and how a page looks. Each only reads (the audit also stores its measurement), so none
takes a slot of the operations' pool.
"""

import dagster as dg
from pydantic import Field

from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.failures import readable_failures
from assetclass_pipeline.defs.presentation import Metadata, curve
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.runs import requester_of
from assetclass_pipeline.errors import AuditTamperedError
from assetclass_pipeline.model.moments import parse_moment
from assetclass_pipeline.reports.audit import audit_report
from assetclass_pipeline.reports.capacity import capacity_report
from assetclass_pipeline.reports.files import store
from assetclass_pipeline.reports.key_numbers import key_numbers, remarks
from assetclass_pipeline.reports.pages import Report
from assetclass_pipeline.reports.performance import performance_report
from assetclass_pipeline.settings import Settings

WEEKLY_PERFORMANCE_JOB = "weekly_performance_job"
MONTHLY_AUDIT_JOB = "monthly_audit_job"
CAPACITY_REPORT_JOB = "capacity_report_job"

WEEKLY_PERFORMANCE = "weekly_performance"
MONTHLY_AUDIT = "monthly_audit"
QUARTERLY_CAPACITY = "quarterly_capacity"


class ReportConfig(dg.Config):
    """What a report is about."""

    since: str | None = Field(
        default=None,
        description="from this time on, ISO 8601, UTC unless it says otherwise; unset: as usual",
    )


@dg.op(description="Sum up the operations of the week beside the four weeks before.")
def report_performance(
    context: dg.OpExecutionContext,
    config: ReportConfig,
    database: dg.ResourceParam[MarketDatabase],
) -> None:
    """Key numbers and the page's path as metadata of the output."""
    with readable_failures():
        since = parse_moment("since", config.since)
        with database.tables(purpose="performance report") as (connection, _):
            require_schema(connection)
            report = performance_report(connection, database.settings, since=since)
        records = [float(day.records_corrected) for day in report.days]
        _show(context, report, database.settings, "rows corrected a day", records)


@dg.op(description="Measure the data in full, and sum up what happened to them.")
def report_audit(
    context: dg.OpExecutionContext,
    config: ReportConfig,
    database: dg.ResourceParam[MarketDatabase],
) -> None:
    """The same; fails, with the report written, where the audit log was tampered with."""
    settings = database.settings
    with readable_failures():
        since = parse_moment("since", config.since)
        with database.tables(purpose="monthly audit") as (connection, tables):
            require_schema(connection)
            report = audit_report(
                connection,
                tables,
                settings,
                since=since,
                run_id=context.run.run_id,
                by=requester_of(context.run),
            )
        _show(
            context,
            report,
            settings,
            "quality score",
            [point.quality_score for point in report.scores],
        )
        if not report.audit_log.whole:
            raise AuditTamperedError(
                f"The audit log was tampered with: {report.audit_log.broken}. The report says what "
                "is whole; ask who may alter schema assetclass."
            )


@dg.op(description="Say how fast things grow, and where that leads.")
def report_capacity(
    context: dg.OpExecutionContext,
    config: ReportConfig,
    database: dg.ResourceParam[MarketDatabase],
) -> None:
    """The same."""
    with readable_failures():
        since = parse_moment("since", config.since)
        with database.tables(purpose="capacity report") as (connection, tables):
            require_schema(connection)
            report = capacity_report(connection, tables, database.settings, since=since)
        totals = [float(point.total_records) for point in report.points]
        _show(context, report, database.settings, "rows", totals)


def _show(
    context: dg.OpExecutionContext,
    report: Report,
    settings: Settings,
    name: str,
    values: list[float],
) -> None:
    """Store the report and show it; `values`, called `name`, are its curve."""
    files = store(report, settings)
    context.log.info("The report is in %s", files.html)
    for remark in remarks(report):
        context.log.info(remark)
    metadata: Metadata = {
        **key_numbers(report),
        "page": dg.MetadataValue.path(str(files.html.resolve())),
        "data": dg.MetadataValue.path(str(files.data.resolve())),
        "remarks": dg.MetadataValue.md(
            "\n".join(f"- {each}" for each in remarks(report)) or "none"
        ),
        "curve": curve(values, name),
    }
    context.add_output_metadata(metadata)


@dg.job(
    name=WEEKLY_PERFORMANCE_JOB,
    description="Write the weekly performance report: operations of seven days, and of the four "
    "weeks before. Nothing is changed.",
    executor_def=dg.in_process_executor,
)
def weekly_performance_job() -> None:
    """One step."""
    report_performance()


@dg.job(
    name=MONTHLY_AUDIT_JOB,
    description="Write the monthly audit: the data by a fresh scan, a year of scores, changes, "
    "operations, alerts, and the audit log with its chain recomputed.",
    executor_def=dg.in_process_executor,
)
def monthly_audit_job() -> None:
    """One step."""
    report_audit()


@dg.job(
    name=CAPACITY_REPORT_JOB,
    description="Write the capacity report: growth, sizes, forecasts. Nothing is changed.",
    executor_def=dg.in_process_executor,
)
def capacity_report_job() -> None:
    """One step."""
    report_capacity()


REPORT_JOBS = (weekly_performance_job, monthly_audit_job, capacity_report_job)

_SCHEDULES = (
    (WEEKLY_PERFORMANCE, WEEKLY_PERFORMANCE_JOB, "0 8 * * 1", "Mondays: the week's operations."),
    (MONTHLY_AUDIT, MONTHLY_AUDIT_JOB, "30 8 1 * *", "On the first: the month's audit."),
    (
        QUARTERLY_CAPACITY,
        CAPACITY_REPORT_JOB,
        "0 9 2 1,4,7,10 *",
        "On the second day of a quarter: growth and forecast.",
    ),
)


def report_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """When reports are written, in the schedules' time zone."""
    return [
        dg.ScheduleDefinition(
            name=name,
            job_name=job,
            cron_schedule=cron,
            execution_timezone=settings.time_zone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )
        for name, job, cron, description in _SCHEDULES
    ]
