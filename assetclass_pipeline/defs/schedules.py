"""Schedules: the nightly correction, the daily measurement, the upkeep of backups.

Belongs here: when a run starts and over which months. Does not: what the run does.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from assetclass_pipeline.database.schema import require_schema
from assetclass_pipeline.defs.jobs import CORRECTION_JOB, DATA_QUALITY_JOB
from assetclass_pipeline.defs.partitions import RANGE_END_TAG, RANGE_START_TAG
from assetclass_pipeline.defs.resources import MarketDatabase
from assetclass_pipeline.defs.runs import RESUME_TAG, STOP_AT_TAG
from assetclass_pipeline.defs.upkeep import BACKUP_CLEANUP_JOB, RECOVERY_DRILL_JOB
from assetclass_pipeline.engine.analysis import correctable_months
from assetclass_pipeline.engine.audit import Asker, record_refusal
from assetclass_pipeline.engine.claiming import refuse_while_active
from assetclass_pipeline.engine.operations import get_operation, left_by_last_window
from assetclass_pipeline.errors import OperationInProgressError
from assetclass_pipeline.model.audit import Action, Actor
from assetclass_pipeline.model.months import Calendar
from assetclass_pipeline.model.operation import Operation
from assetclass_pipeline.settings import Settings

NIGHTLY_CORRECTION = "nightly_correction"
DAILY_DATA_QUALITY = "daily_data_quality"
WEEKLY_BACKUP_CLEANUP = "weekly_backup_cleanup"
QUARTERLY_RECOVERY_DRILL = "quarterly_recovery_drill"
_ASKER = Asker(Actor.schedule(NIGHTLY_CORRECTION).requester)


def nightly_correction_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Correct the damaged months when the window opens, unless an operation is active."""

    @dg.schedule(
        name=NIGHTLY_CORRECTION,
        job_name=CORRECTION_JOB,
        cron_schedule=f"{settings.nightly_start.minute} {settings.nightly_start.hour} * * *",
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Corrects the months from the first to the last with correctable rows; without any, "
            "the current month, so that reports and checks are fresh. Stops when the window "
            "closes; the next night goes on where it stopped. Skips while another operation is "
            "active, and a night that is over before anybody could start it."
        ),
    )
    def nightly_correction(
        context: dg.ScheduleEvaluationContext, database: dg.ResourceParam[MarketDatabase]
    ) -> dg.RunRequest | dg.SkipReason:
        closes = window_end(context.scheduled_execution_time, settings)
        if closes <= datetime.now(UTC):
            return dg.SkipReason(
                f"The window of this night closed at {closes:%Y-%m-%d %H:%M %Z}, before anybody "
                "looked at the schedule. The next night corrects what is left; `assetclass "
                "execute` does it now."
            )
        with database.tables(purpose="nightly schedule") as (connection, tables):
            require_schema(connection)
            try:
                refuse_while_active(connection, settings)
            except OperationInProgressError as error:
                record_refusal(connection, settings, error, _ASKER, Action.CLAIM_OPERATION)
                active = get_operation(connection, settings, error.correction_id)
                return dg.SkipReason(_why_not(active))
            left = left_by_last_window(connection, settings)
            damaged = None if left else correctable_months(connection, tables, settings)
        calendar = Calendar.until_now(settings.first_month)
        current = calendar.keys[-1]
        first, last = damaged or (current, current)
        tags = {STOP_AT_TAG: closes.isoformat()}
        if left is not None:
            months = calendar.months_in(left.scope)
            first, last = months[0], months[-1]
            tags[RESUME_TAG] = left.correction_id
        return dg.RunRequest(
            run_key=f"{context.scheduled_execution_time:%Y-%m-%dT%H:%M%z}",
            tags={RANGE_START_TAG: first, RANGE_END_TAG: last, **tags},
        )

    return nightly_correction


def window_end(start: datetime, settings: Settings) -> datetime:
    """When the window that opens at `start` closes: the next `nightly_end` in its zone."""
    local = start.astimezone(settings.zone)
    day = local.date()
    if settings.nightly_end <= local.time():
        day += timedelta(days=1)
    return datetime.combine(day, settings.nightly_end, tzinfo=settings.zone)


def daily_data_quality_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Measure every day when the nightly window closes."""
    return dg.ScheduleDefinition(
        name=DAILY_DATA_QUALITY,
        job_name=DATA_QUALITY_JOB,
        cron_schedule=f"{settings.nightly_end.minute} {settings.nightly_end.hour} * * *",
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Measures the data after the nightly window and checks every threshold.",
    )


def weekly_backup_cleanup_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Archive and drop expired backups every Sunday, beside whatever runs then."""
    return dg.ScheduleDefinition(
        name=WEEKLY_BACKUP_CLEANUP,
        job_name=BACKUP_CLEANUP_JOB,
        cron_schedule="30 4 * * 0",
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=(
            "Drops backups that are expired, proved, and neither held nor needed, after their rows "
            "were archived."
        ),
    )


def quarterly_recovery_drill_schedule(settings: Settings) -> dg.ScheduleDefinition:
    """Prove four times a year that a backup restores, and how fast."""
    return dg.ScheduleDefinition(
        name=QUARTERLY_RECOVERY_DRILL,
        job_name=RECOVERY_DRILL_JOB,
        cron_schedule="0 7 1 1,4,7,10 *",
        execution_timezone=settings.time_zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Restores the newest backup into a scratch copy and proves it row by row.",
    )


def _why_not(active: Operation) -> str:
    return (
        f"{active.kind.capitalize()} {active.correction_id} is {active.status} "
        f"({active.phase}, {active.progress_percent:.0f} %, requested by "
        f"{active.requested_by or 'unknown'}): only one operation may be active. The next night "
        "corrects what it leaves."
    )
